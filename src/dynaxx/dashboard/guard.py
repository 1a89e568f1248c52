"""Who may ask: the name the request was sent to, the method, the token; and what a page may do once it is answered.

A page elsewhere can make a browser send requests to this machine under a name of its own (DNS rebinding) and read the
answers. It cannot choose the Host header, so names that are not ours are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
ASK = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dynaxx: token wanted</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"></head><body><main>
<h1>dynaxx dashboard</h1><p>Open the address that <code>dynaxx dashboard</code> printed, or enter its token.</p>
<form action="/" method="get"><label>Token <input name="token" type="password" autocomplete="off" required></label>
<button>Enter</button></form></main></body></html>"""


class Guard:
    """An ASGI application in front of another.

    Args:
        hosts: names, beside this machine's own loopback, that requests may be sent to.
        addresses: whether any IP address will do, too (an address cannot be rebound).
        token: what visitors must know; None where everybody who reaches the server may look.
        cookie: the name under which browsers remember the token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] = (),
        addresses: bool = False,
        token: str | None = None,
        cookie: str = "dynaxx",
    ):
        self.app = app
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}
        self.addresses = addresses
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self.refuse(scope)
        await (self.app if refusal is None else refusal)(scope, receive, guarded)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further; None for one that may."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.knows(hosts[0]):
            text = "This server does not answer to that name; --allow-host adds one."
            return PlainTextResponse(text, status_code=421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed here.", status_code=405, headers={"allow": "GET, HEAD"})
        if self.token is None:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if any(map(self.right, given)):
            # into a cookie, and out of the address: addresses are copied, remembered and shown
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self.cookie, given[0], httponly=True, samesite="lax", path="/")
            return answer
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        remembered = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if (scheme.lower() == "bearer" and self.right(credential.strip())) or self.right(remembered):
            return None
        if scope["path"] == "/":
            return HTMLResponse(ASK, status_code=401)
        return PlainTextResponse("A token is wanted.", status_code=401, headers={"www-authenticate": "Bearer"})

    def right(self, given: str) -> bool:
        """Whether this is the token; the time it takes does not tell how much of it was right."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def knows(self, host: str) -> bool:
        """Whether requests may be sent to this name; the port does not matter, for a tunnel may change it.

        >>> guard = Guard(None, hosts=["lab"])
        >>> [guard.knows(host) for host in ("localhost:9", "[::1]:9", "LAB.", "evil.example", "10.0.0.1", "")]
        [True, True, True, False, False, False]
        """
        name = host.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        name = name.rstrip(".")
        return name in self.hosts or (self.addresses and is_address(name))


def is_address(name: str) -> bool:
    """Whether this is an IP address and not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "")]
    [True, True, True, False, False]
    """
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
