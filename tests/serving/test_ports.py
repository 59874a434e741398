"""The end of a listening port: who is in stays in, and nobody comes in any more."""

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from server.serving.ports import begin_no_more, take_waiting


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(16)
        yield one


def test_connections_that_nobody_has_accepted_outlive_the_port(listening: socket.socket) -> None:
    clients = [socket.create_connection(listening.getsockname(), 5) for _ in range(5)]
    for client in clients:
        client.sendall(b"hello")
    taken = take_waiting([listening])
    assert len(taken) == 5
    assert take_waiting([listening]) == []
    listening.close()
    for one in taken:
        one.setblocking(True)
        assert one.recv(5) == b"hello"
        one.sendall(b"bye")
    for client in clients:
        assert client.recv(3) == b"bye"
    for one in (*taken, *clients):
        one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def may_filter() -> bool:
    """Does the system let this process attach a filter to a socket of its own?"""
    keep_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF))
    with socket.socket() as one:
        try:
            one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(keep_all)))
        except PermissionError:
            return False
    return True


def test_a_port_can_stop_beginning_connections_and_keep_those_that_it_has(listening: socket.socket) -> None:
    if not may_filter():
        pytest.skip("this kernel lets root alone attach a filter to a socket")
    before = socket.create_connection(listening.getsockname(), 5)
    begin_no_more([listening])
    with pytest.raises(TimeoutError):
        socket.create_connection(listening.getsockname(), 0.3)
    (taken,) = take_waiting([listening])
    before.sendall(b"still here")
    taken.setblocking(True)
    assert taken.recv(10) == b"still here"
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(before.getpeername(), 5)
    taken.close()
    before.close()


def test_a_port_that_is_closed_already_is_no_error(listening: socket.socket) -> None:
    listening.close()
    begin_no_more([listening])
    assert take_waiting([listening]) == []
