"""Who is let in, under which name, and what the answers forbid a page to do."""

import asyncio

import pytest

from dashboard.served import served
from dynaxx.dashboard.guard import Guard


@pytest.fixture(scope="module")
def closed_server(path):
    with served(path, token="right-token", hosts=["lab"], addresses=True, cookie="dynaxx-test") as running:
        yield running


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "[::1]:9", "LOCALHOST."])
def test_this_machines_own_names_are_answered(server, host):
    assert server.ask("/api/runs", host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8722", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", False],
)
def test_a_name_that_was_rebound_to_this_machine_is_not(server, host):
    status, _, body = server.ask("/api/runs", host=host)
    assert status in (400, 421)
    assert b"cnn" not in body


def test_names_that_were_allowed_and_addresses_are_answered_where_a_token_guards(closed_server):
    bearer = {"Authorization": "Bearer right-token"}
    for host in ("lab", "Lab:80", "192.0.2.7:8722", "[2001:db8::1]:80", "localhost"):
        assert closed_server.ask("/api/runs", headers=bearer, host=host)[0] == 200
    assert closed_server.ask("/api/runs", headers=bearer, host="other")[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer right-toke"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic right-token"},
        {"Cookie": "dynaxx-test=wrong"},
        {"Cookie": "dynaxx=right-token"},
        {"Cookie": "dynaxx-test="},
        {"Authorization": "Bearer r\xefght-token"},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_told(closed_server, headers):
    files = ("/runs/1/report.html", "/runs/1/artifacts/notes.txt", "/static/app.js")
    for path in ("/", "/api/runs", "/api/runs/1", *files, "/x"):
        status, answered, body = closed_server.ask(path, headers=headers)
        assert status == 401
        assert b"cnn" not in body
        assert b"right-token" not in body
        assert "set-cookie" not in answered


@pytest.mark.parametrize("query", ["?token=wrong", "?token=", "?token=right-token%00", "?Token=right-token"])
def test_a_wrong_token_in_the_address_sets_no_cookie(closed_server, query):
    status, headers, _ = closed_server.ask(f"/{query}")
    assert status == 401
    assert "set-cookie" not in headers


def test_the_right_token_moves_from_the_address_into_a_cookie_and_then_opens_everything(closed_server):
    status, headers, _ = closed_server.ask("/?token=right-token")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    sent = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    for path in ("/", "/api/runs", "/static/app.js", "/runs/1/data.csv"):
        assert closed_server.ask(path, headers=sent)[0] == 200
    assert closed_server.ask("/api/runs", headers={"Authorization": "bearer right-token"})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(server, method):
    status, headers, _ = server.ask("/api/runs", method=method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "address",
    [
        "/static/../guard.py",
        "/static/..%2fguard.py",
        "/static/..%5cguard.py",
        "/static/%2e%2e/%2e%2e/track/store.py",
        "//etc/passwd",
        "/static//etc/passwd",
        "/static/%00",
        "/static/",
        "/static/__init__.py",
        "/../../../../etc/passwd",
        "/runs/1/artifacts/../../../../etc/passwd",
        "/runs/1/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/runs/1/artifacts//etc/passwd",
        "/runs/../1/data.csv",
        "/runs/-1/data.csv",
        "/runs/1e3/data.csv",
    ],
)
def test_no_path_leads_out_of_the_house(server, address):
    status, _, body = server.ask(address)
    assert status == 404
    assert b"root:" not in body
    assert b"import" not in body


def test_every_answer_forbids_the_page_the_network_and_other_peoples_scripts(server):
    for path in ("/", "/static/app.js", "/api/runs", "/nothing", "/api/lines"):
        _, headers, _ = server.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    _, headers, _ = server.ask("/runs/1/artifacts/notes.txt")
    assert "sandbox" in headers["content-security-policy"]
    assert headers["content-disposition"].startswith("attachment")


def test_the_page_holds_no_script_or_style_of_its_own(server):
    _, _, body = server.ask("/")
    text = body.decode()
    assert "<style" not in text
    assert "style=" not in text
    assert "onclick" not in text
    assert text.count("<script") == text.count("<script src=")


def test_what_is_no_request_for_a_page_is_closed_or_left_alone():
    def answers(kind):
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(Guard(None)({"type": kind}, None, send))
        return sent

    assert answers("websocket") == [{"type": "websocket.close", "code": 1008}]
    assert answers("lifespan") == []
