"""The pages and the questions they ask, each a GET that changes nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dynaxx.dashboard import answers
from dynaxx.dashboard.assets import assets
from dynaxx.dashboard.drawings import Drawings, names_of
from dynaxx.dashboard.questions import POINTS, number, numbers, share, stretch
from dynaxx.dashboard.series import SeriesCache
from dynaxx.errors import InputError
from dynaxx.report import page
from dynaxx.report.comparison import comparison
from dynaxx.report.run import document_from_run
from dynaxx.track import Store, StoreError
from dynaxx.track.export import COLUMNS, rows, run_as_data
from dynaxx.track.names import clean_name

ROWS = 2000  # of a CSV file, sent at a time
SEALED = {"content-security-policy": "sandbox; default-src 'none'"}  # for files that a run brought along


def application(store: Store) -> Starlette:
    """The dashboard of a store as an ASGI application. Who may ask is not its business: see
    :class:`dynaxx.dashboard.guard.Guard`.
    """
    return Starlette(
        routes=[
            Route("/", lambda request: _asset(request, "index.html")),
            Route("/static/{name}", lambda request: _asset(request, request.path_params["name"])),
            *_questions(store),
            *_files(store),
        ],
        exception_handlers={StoreError: _refused(404), InputError: _refused(400)},
    )


def _questions(store: Store) -> list[Route]:
    drawings = Drawings(SeriesCache(store))

    def news(request: Request) -> Any:
        return answers.news(store, number(request, "since", 0))

    def runs(request: Request) -> Any:
        chosen = {key: request.query_params.get(key) or None for key in ("project", "tag")}
        parent = number(request, "parent") if "parent" in request.query_params else None
        return answers.runs(store, search=request.query_params.get("search", ""), parent=parent, **chosen)

    def run(request: Request) -> Any:
        return answers.run(store, request.path_params["run"])

    def alerts(request: Request) -> Any:
        return answers.alerts(store, _optional(request, "run"), number(request, "since", 0))

    def versions(request: Request) -> Any:
        return answers.versions(store)

    def compare(request: Request) -> Any:
        items = list(dict.fromkeys(request.query_params.getlist("item")))
        if not 1 <= len(items) <= 8:
            raise InputError(f"{len(items)} items were given to compare; give 1 to 8 (item=3, item=4:pruned)")
        return answers.compare(store, items)

    def lines(request: Request) -> Response:
        chosen = numbers(request, "run", 8)
        names = request.query_params.getlist("name")
        if quantity := request.query_params.get("quantity"):
            names = names_of(store.metric_names(chosen[0]), quantity)
            names = _largest(store, chosen[0], names, number(request, "curves", 8, 1, 64))
        points, part = number(request, "points", POINTS, 16, 20000), stretch(request)
        extents = drawings.extents(chosen, names)
        tag = drawings.lines_tag(extents, names, points, part)
        if _known(request, tag):
            return Response(status_code=304, headers={"etag": f'"{tag}"'})
        return _json(drawings.lines(extents, names, points, part), tag)

    def spectrum(request: Request) -> Any:
        return drawings.spectrum(
            number(request, "run"), _named(request), _optional(request, "step"), share(request, "threshold", 0.01)
        )

    def heatmap(request: Request) -> Any:
        return drawings.heatmap(number(request, "run"), _named(request, "quantity"))

    def family(request: Request) -> Any:
        return drawings.family(number(request, "run"), _named(request, "page"))

    def inpca(request: Request) -> Any:
        return answers.inpca(store, number(request, "run"), _named(request), _optional(request, "step"))

    asked: list[Callable[[Request], Any]] = [news, runs, alerts, versions, compare, spectrum, heatmap, family, inpca]
    return [
        *(Route(f"/api/{each.__name__}", _answering(each)) for each in asked),
        Route("/api/runs/{run:int}", _answering(run)),
        Route("/api/lines", lines),
    ]


def _files(store: Store) -> list[Route]:
    def report(request: Request) -> Response:
        run_id = request.path_params["run"]
        return _download(page(document_from_run(store, run_id)), "text/html", f"run-{run_id}.html")

    def comparison_report(request: Request) -> Response:
        return _download(page(comparison(store, numbers(request, "run", 8))), "text/html", "comparison.html")

    def as_json(request: Request) -> Response:
        run_id = request.path_params["run"]
        text = json.dumps(run_as_data(store, run_id), allow_nan=False)
        return _download(text, "application/json", f"run-{run_id}.json")

    def as_csv(request: Request) -> Response:
        run_id = request.path_params["run"]
        store.info(run_id)
        headers = {"content-disposition": f'attachment; filename="run-{run_id}.csv"'}
        return StreamingResponse(_csv(rows(store, [run_id])), media_type="text/csv", headers=headers)

    def artifact(request: Request) -> Response:
        run_id, name = request.path_params["run"], request.path_params["name"]
        known = {item.name: item for item in store.artifacts(run_id)}
        path = known[name].path if name in known else None
        if path is not None and not _beside(store, path):
            # the row may come from elsewhere, and could name any file that this user can read
            raise StoreError(f"artifact {name!r} lies outside the store's folder, at {path!r}; open it there")
        return _download(store.artifact(run_id, name), "application/octet-stream", name.rpartition("/")[2] or "file")

    return [
        Route("/runs/{run:int}/report.html", report),
        Route("/runs/{run:int}/data.json", as_json),
        Route("/runs/{run:int}/data.csv", as_csv),
        Route("/runs/{run:int}/artifacts/{name:path}", artifact),
        Route("/compare.html", comparison_report),
    ]


def _answering(ask: Callable[[Request], Any]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        body = _encoded(ask(request))
        tag = hashlib.sha256(body).hexdigest()[:24]
        if _known(request, tag):
            return Response(status_code=304, headers={"etag": f'"{tag}"'})
        return Response(body, media_type="application/json", headers={"etag": f'"{tag}"'})

    return answer


def _encoded(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _json(data: Any, tag: str) -> Response:
    return Response(_encoded(data), media_type="application/json", headers={"etag": f'"{tag}"'})


def _known(request: Request, tag: str) -> bool:
    return f'"{tag}"' in request.headers.get("if-none-match", "")


def _refused(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        return Response(_encoded({"error": str(error)}), status, media_type="application/json")

    return answer


def _asset(request: Request, name: str) -> Response:
    if name not in assets():
        return PlainTextResponse("There is no such file.", 404)
    content, media, tag = assets()[name]
    headers = {"etag": tag, "cache-control": "no-cache", "content-type": media}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


def _download(content: str | bytes, media: str, name: str) -> Response:
    # the store may come from elsewhere, so the name may hold what would end the quotation
    disposition = {"content-disposition": f'attachment; filename="{clean_name(name)}"'}
    return Response(content, media_type=media, headers={**disposition, **SEALED})


def _csv(lines: Iterator[Iterable[Any]]) -> Iterator[str]:
    def text(some: Iterable[Iterable[Any]]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer).writerows(some)
        return buffer.getvalue()

    yield text([COLUMNS])
    while some := list(islice(lines, ROWS)):
        yield text(some)


def _beside(store: Store, path: str) -> bool:
    """Whether a file lies in the folder of an SQLite store, links followed."""
    if not store.database.sqlite or not store.database.url.database:
        return False
    folder = Path(store.database.url.database).resolve().parent
    return Path(path).resolve().is_relative_to(folder)


def _largest(store: Store, run_id: int, names: list[str], count: int) -> list[str]:
    """The series with the largest last values; what is not finite comes first, for somebody will look for it."""
    last = store.last(run_id)
    size = lambda name: abs(last[name].value) if abs(last[name].value) >= 0 else float("inf")  # noqa: E731
    return sorted(sorted(names, key=size, reverse=True)[:count])


def _optional(request: Request, name: str) -> int | None:
    return number(request, name) if request.query_params.get(name) else None


def _named(request: Request, name: str = "name") -> str:
    text = request.query_params.get(name)
    if not text:
        raise InputError(f"{name} is missing from the address")
    return text
