"""A sink that tells people: each event as one HTTP POST to a chat or to a service of your own."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from dynaxx.errors import InputError, choose
from dynaxx.track.records import Alert, as_json
from dynaxx.track.sinks.base import Record
from dynaxx.version import __version__

LEVELS = ("info", "warning", "error")
DISCORD_MOST = 2000  # characters of one message


class Webhook:
    """Posts events to a URL. Records are not posted.

    What is refused (any answer but 2xx, redirects included) raises, so that it is tried again. The address is never
    shown, because for Slack and Discord it is the key.

    Args:
        url: http or https.
        payload: "json" (level, title, text, step, wall), "slack", "discord", or a function of the event that gives
            what json.dumps takes.
        levels: which events; default warnings and errors.
        source: what the message says it is from, such as the run's name.
        headers: further ones, such as Authorization.
        timeout: seconds for one try.

    Raises:
        InputError: the address is not http or https, or an unknown payload or level.

    Source: Slack's "Sending messages using incoming webhooks" and "Formatting text" (escapes), Discord's "Execute
    Webhook".

    >>> Webhook("https://example.org/secret", payload="slack", source="run 7")
    Webhook('example.org', 'slack')
    """

    def __init__(
        self,
        url: str,
        *,
        payload: str | Callable[[Alert], Any] = "json",
        levels: Collection[str] = ("warning", "error"),
        source: str = "dynaxx",
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("Webhook: the address is no http or https URL; give the one that the service shows")
        self._url, self._host = url, parts.hostname
        self._kind = "own" if callable(payload) else choose("payload", payload, PAYLOADS)
        self._payload = payload if callable(payload) else lambda event: PAYLOADS[self._kind](event, source)
        self.levels = frozenset(choose("levels", level, LEVELS) for level in levels)
        self._headers = {"Content-Type": "application/json", "User-Agent": f"dynaxx/{__version__}", **(headers or {})}
        self.timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirect)

    def write(self, records: Sequence[Record]) -> None:
        """Records are for trackers."""

    def event(self, event: Alert) -> None:
        """Post it, and wait for the answer."""
        if event.level not in self.levels:
            return
        body = json.dumps(self._payload(event), allow_nan=False).encode()
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")
        with self._opener.open(request, timeout=self.timeout) as answer:
            answer.read()

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""

    def __repr__(self) -> str:
        return f"Webhook({self._host!r}, {self._kind!r})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A followed redirect would turn the POST into a GET without content, and call it a success."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Do not follow; the answer then raises as an error."""


def _heading(event: Alert, source: str) -> str:
    where = "" if event.step is None else f", step {event.step}"
    return f"{event.level.upper()} {event.title} ({source}{where})"


def _json(event: Alert, source: str) -> dict[str, Any]:
    names = ("level", "title", "text", "step", "wall")
    return as_json({"source": source} | {name: getattr(event, name) for name in names})


def _slack(event: Alert, source: str) -> dict[str, Any]:
    text = f"{_heading(event, source)}\n{event.text}"
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(event: Alert, source: str) -> dict[str, Any]:
    text = f"{_heading(event, source)}\n{event.text}"[:DISCORD_MOST]
    return {"content": text, "allowed_mentions": {"parse": []}}


PAYLOADS: dict[str, Callable[[Alert, str], dict[str, Any]]] = {"json": _json, "slack": _slack, "discord": _discord}
