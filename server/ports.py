"""Ports that several processes share."""

from __future__ import annotations

import socket

from .settings import ConfigError


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that holds the port for the workers and takes no connection. Raises ConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: another server's port is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise ConfigError(f"port: cannot serve on {host}:{port} ({error.strerror or error})") from error
    return holder
