"""``dynaxx dashboard`` as a user starts it: one process, one line, Ctrl-C."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from dashboard.demo_store import fill
from dynaxx.dashboard.serve import listen
from dynaxx.errors import InputError

CODE = (
    "import sys; from dynaxx.cli.main import main\nsys.argv[0] = 'dynaxx'\n"
    "try: main()\nfinally: print('torch' in sys.modules, flush=True)"
)


class Started:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", CODE, "dashboard", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        line = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", line).group() if "http://" in line else None
        self.port = int(re.search(r":(\d+)/", self.url).group(1)) if self.url else None

    def status(self, path="/", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("serve") / "runs.db"
    fill(place)
    return place


def test_it_prints_its_address_answers_and_ends_quietly_without_torch(path):
    server = Started(path, "--port", 0)
    assert server.url == f"http://127.0.0.1:{server.port}/"
    assert server.status("/api/runs")[0] == 200
    if sys.platform == "linux":  # where all of 127.0.0.0/8 is this machine: it listens at one address, not at all
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=5)
    code, out, err = server.end()
    assert (code, err) == (0, "")
    assert out.strip().splitlines()[-1] == "False"


def test_another_address_asks_for_a_token_that_is_printed_once(path):
    server = Started(path, "--port", 0, "--host", "0.0.0.0")
    token = re.search(r"\?token=([\w-]{40,})$", server.url).group(1)
    assert server.status("/api/runs")[0] == 401
    assert server.status("/api/runs", Authorization=f"Bearer {token[:-1]}")[0] == 401
    assert server.status("/api/runs", Authorization=f"Bearer {token}")[0] == 200
    assert server.status(f"/?token={token}")[0] == 303
    code, out, err = server.end()
    assert (code, err) == (0, "")
    assert token not in out


def test_a_token_can_be_asked_for_at_home(path):
    server = Started(path, "--port", 0, "--token", "--allow-host", "lab")
    assert "token=" in server.url
    assert server.status()[0] == 401
    assert server.status(Host="lab")[0] == 401
    assert server.status(Host="other")[0] == 421
    server.end()


def test_what_cannot_be_served_is_one_line(path, tmp_path):
    with listen("127.0.0.1", 0) as taken:
        server = Started(path, "--port", taken.getsockname()[1])
        assert server.url is None
        assert server.process.wait(timeout=20) == 2
        err = server.process.stderr.read()
        assert len(err.strip().splitlines()) == 1
        assert "--port 0 takes one that is free" in err
    server = Started(tmp_path / "none.db", "--port", 0)
    assert server.process.wait(timeout=20) == 2
    assert "there is no run store" in server.process.stderr.read()
    for host, port in (("127.0.0.1", 70000), ("192.0.2.1", 0), ("not a host", 0)):
        with pytest.raises(InputError):
            listen(host, port)
