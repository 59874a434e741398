"""The end of a listening port: connections that the kernel has already made are kept."""

import socket
from collections.abc import Iterator

import pytest

from server.serving.ports import hold_port, take_waiting
from server.settings.setting import ConfigError


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(16)
        yield one


def test_connections_that_are_not_accepted_yet_outlive_the_port(listening: socket.socket) -> None:
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


def test_a_port_that_is_closed_already_is_no_error(listening: socket.socket) -> None:
    listening.close()
    assert take_waiting([listening]) == []


@pytest.mark.parametrize("host", ["no-such.invalid", "256.1.1.1"])
def test_a_host_that_is_not_known_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=f"^port: cannot serve on {host}:0: the host is not known: give an address of this machine"):
        hold_port(host, 0)
