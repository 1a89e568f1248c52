"""Listening: where, under which names, and with which token."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from dynaxx.errors import InputError
from dynaxx.track import Store


def serve(
    store: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8722,
    token: bool = False,
    allowed_hosts: Sequence[str] = (),
    ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the pages of a run store until the process is interrupted.

    Args:
        store: path of an SQLite file, or a database URL; it is opened to be read only.
        host: address to listen at. Any but this machine's own gives the server a token.
        port: 0 for one that is free.
        token: give it one at this machine's own address, too.
        allowed_hosts: names beside this machine's that browsers may use.
        ready: called with the address to open, which holds the token if there is one, once the port is open.

    Raises:
        StoreError: there is no store there.
        InputError: nothing can listen at that address.
    """
    import uvicorn

    from dynaxx.dashboard.application import application
    from dynaxx.dashboard.guard import Guard, is_loopback

    with Store(store, readonly=True) as opened, listen(host, port) as listener:
        bound = listener.getsockname()[1]
        local = is_loopback(host)
        secret = secrets.token_urlsafe(32) if token or not local else None
        names = [*allowed_hosts, host] if local else [*allowed_hosts, host, socket.gethostname(), socket.getfqdn()]
        # cookies belong to a host whatever the port, so two servers need two names
        guarded = Guard(application(opened), hosts=names, addresses=not local, token=secret, cookie=f"dynaxx-{bound}")
        config = uvicorn.Config(
            guarded, log_level="warning", access_log=False, lifespan="off", server_header=False, ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        ready(f"http://{_shown(host)}:{bound}/" + ("" if secret is None else f"?token={secret}"))
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address is not this machine's, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port={port} is no port; give 0 (one that is free) to 65535")
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host!r}, port {port}: {error.strerror or error}; --port 0 takes one that is free"
        ) from error


def _shown(host: str) -> str:
    """The host as it stands in an address that this machine can open."""
    if host in ("", "0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
