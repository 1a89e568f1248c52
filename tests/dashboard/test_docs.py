"""The page of the documentation says what the server does."""

import re
from pathlib import Path

from starlette.routing import Route

from dynaxx.cli.main import app
from dynaxx.dashboard import application
from dynaxx.track import Store

TEXT = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")


def test_every_question_and_every_command_is_documented_and_nothing_else():
    with Store("sqlite://") as store:
        paths = {route.path for route in application(store).routes if isinstance(route, Route)}
    asked = {re.sub(r"\{.*?\}", "RUN", path) for path in paths if path.startswith("/api/")}
    assert asked == set(re.findall(r"^\| `(/api/[\w/]+)", TEXT, re.M))
    commands = {command.name for command in app.registered_commands}
    assert set(re.findall(r"^\| `dynaxx (\w+)", TEXT, re.M)) <= commands
    assert {"runs", "show", "compare", "tag", "export", "gc", "migrate", "dashboard"} <= set(
        re.findall(r"^\| `dynaxx (\w+)", TEXT, re.M)
    )
