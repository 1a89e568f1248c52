"""Webhooks against a real HTTP server on this machine."""

import json
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dynaxx.errors import InputError
from dynaxx.monitor.outlets import Outlet
from dynaxx.track.records import Alert
from dynaxx.track.sinks import Record, Webhook

EVENT = Alert("warning", "divergence", "loss <3> & rising @everyone", 5, 12.0)


class Service:
    """Answers with the given codes one after the other, then with 200, and keeps what was posted."""

    def __init__(self, codes=()):
        self.codes, self.posted = list(codes), []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.posted.append((self.path, dict(self.headers), json.loads(body)))
                code = service.codes.pop(0) if service.codes else 200
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(b"ok")

            def do_GET(self):
                pytest.fail("a redirect was followed")

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-key"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            "json",
            {
                "source": "run 7",
                "level": "warning",
                "title": "divergence",
                "text": "loss <3> & rising @everyone",
                "step": 5,
                "wall": 12.0,
            },
        ),
        ("slack", {"text": "WARNING divergence (run 7, step 5)\nloss &lt;3&gt; &amp; rising @everyone"}),
        (
            "discord",
            {
                "content": "WARNING divergence (run 7, step 5)\nloss <3> & rising @everyone",
                "allowed_mentions": {"parse": []},
            },
        ),
        (lambda event: [event.step], [5]),
    ],
)
def test_payloads(payload, expected):
    with Service() as service:
        sink = Webhook(service.url, payload=payload, source="run 7", headers={"Authorization": "Bearer x"})
        sink.write([Record(0, 0.0, {"a": 1.0})])
        sink.event(Alert("info", "t", "text", 5, 0.0))
        sink.event(EVENT)
    ((path, headers, body),) = service.posted
    assert path == "/secret-key"
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer x")
    assert body == expected


def test_a_long_text_fits_discord():
    with Service() as service:
        Webhook(service.url, payload="discord").event(Alert("error", "t", "x" * 5000, None, 0.0))
    assert len(service.posted[0][2]["content"]) == 2000


@pytest.mark.parametrize("code", [302, 404, 429, 500])
def test_what_is_not_taken_raises_and_keeps_the_key(code):
    with Service([code]) as service, pytest.raises(urllib.error.HTTPError) as raised:
        Webhook(service.url).event(EVENT)
    assert str(code) in str(raised.value)
    assert "secret" not in str(raised.value)
    assert len(service.posted) == 1


def test_it_is_tried_again_until_it_is_taken():
    said = []
    with Service([503, 503]) as service:
        outlet = Outlet(Webhook(service.url), said.append, pause=0.001)
        outlet.put(EVENT)
        deadline = time.monotonic() + 10
        while len(service.posted) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        outlet.close()
    assert [body["title"] for _, _, body in service.posted] == ["divergence"] * 3
    assert said == []


def test_nobody_there_is_said_without_the_key():
    with Service() as service:
        url = service.url
    said = []
    outlet = Outlet(Webhook(url, timeout=1.0), said.append, pause=0.001)
    outlet.put(EVENT)
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.005)
    outlet.close()
    assert "Webhook was given up after 5 failures" in said[0]
    assert "secret" not in said[0]


@pytest.mark.parametrize("url", ["file" + ":///etc/passwd", "ftp://host/key", "key", "http://", None])
def test_other_addresses_are_refused_unshown(url):
    with pytest.raises(InputError, match="no http or https URL") as raised:
        Webhook(url)
    assert "key" not in str(raised.value)


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="choose one of 'json', 'slack', 'discord'"):
        Webhook("https://example.org", payload="teams")
    with pytest.raises(InputError, match="levels='fatal'"):
        Webhook("https://example.org", levels=["fatal"])
    assert repr(Webhook("https://example.org/secret", payload=str)) == "Webhook('example.org', 'own')"
