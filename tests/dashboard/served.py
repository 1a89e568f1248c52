"""A dashboard that listens, in a thread of this process, and questions to it over a real socket."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import uvicorn

from dynaxx.dashboard import application
from dynaxx.dashboard.guard import Guard
from dynaxx.dashboard.serve import listen
from dynaxx.track import Store


class Server:
    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    def ask(self, path, method="GET", headers=None, host=None):
        """(status, headers, body) of one request, its path sent as it is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        if host is not False:
            connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def json(self, path, **options):
        status, headers, body = self.ask(path, **options)
        assert status == 200, (status, body)
        assert headers["content-type"] == "application/json"
        return json.loads(body)


@contextmanager
def served(path, **guard):
    with Store(path, readonly=True) as store, listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            Guard(application(store), **guard), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Server(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
