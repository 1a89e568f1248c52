"""The page as text: complete, escaped, alone; and written whole or not at all."""

import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dynaxx.errors import InputError
from dynaxx.report import Document, page, write
from dynaxx.report.page import embedded, static
from report.demo_documents import demo, hostile

HOSTILE = (
    "</script><script>window.hacked=1</script><img src='http://127.0.0.1:9/x' onerror=\"hacked=1\">"
    "&amp;${1}`\u2028\x1b[31m"
)


class Reader(HTMLParser):
    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.stack, self.words = [], [], {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag  # every element is closed, in order

    def handle_data(self, data):
        if self.stack:
            self.words.setdefault(self.stack[-1], []).append(data)


def test_every_block_is_there_and_every_element_is_closed():
    reader = Reader(page(demo()))
    assert reader.stack == []
    tags = [tag for tag, _ in reader.tags]
    assert reader.words["h1"] == ["Fisher spectrum"]
    assert reader.words["h2"] == ["Summary", "Training", "Spectrum", "Layers"]
    assert reader.words["strong"] == ["Note", "Good", "Warning", "Problem"]
    assert tags.count("details") == 3  # a table behind each chart
    assert sum(1 for tag, a in reader.tags if a.get("class") == "plot" and a["role"] == "img" and a["aria-label"]) == 3
    assert "41.32 ± 0.21" in reader.words["dd"]
    assert {"First paragraph.", "Second paragraph."} <= set(reader.words["p"])
    anchors = [a["href"][1:] for tag, a in reader.tags if tag == "a"]
    assert anchors == [a["id"] for tag, a in reader.tags if tag == "section"]


def test_nothing_from_outside_becomes_markup():
    calm, attacked = Reader(page(hostile("word"))), Reader(page(hostile(HOSTILE)))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in calm.tags]
    assert [set(a) for _, a in attacked.tags] == [set(a) for _, a in calm.tags]
    shown = HOSTILE.replace("\x1b", "")
    assert "".join(attacked.words["h1"]) == shown
    assert {a["alt"] for tag, a in attacked.tags if tag == "img"} == {shown}
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page(hostile(HOSTILE)), re.S)
    assert json.loads(data)[0]["title"] == HOSTILE


def test_embedded_json_cannot_end_its_element_and_comes_back():
    value = {"</script>": ["<!--", "&", "\u2028", 1.5, None]}
    encoded = embedded(value)
    assert not set(encoded) & set("<>&\u2028")
    assert json.loads(encoded) == value
    with pytest.raises(ValueError, match="JSON"):
        embedded([float("nan")])


def test_the_page_loads_nothing_and_forbids_itself_to():
    source = page(demo())
    for tag, attributes in Reader(source).tags:
        for key in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(key, "data:").startswith(("data:", "#")), (tag, attributes)
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source
    assert "unsafe" not in source


def test_the_library_comes_with_its_licence():
    assert "Copyright (c) 2022 Leon Sorokin" in page(Document("x"))
    assert "v1.6.32" in static("uPlot.iife.min.js")[:80]


def test_the_same_document_gives_the_same_page():
    assert page(demo()) == page(demo())


def test_an_empty_document_and_wrong_things():
    assert Reader(page(Document("Only a title"))).words["h1"] == ["Only a title"]
    with pytest.raises(InputError, match=r"takes a .*Document, not a str"):
        page("text")


def test_writing_replaces_the_file_and_leaves_no_other(tmp_path):
    target = tmp_path / "new" / "report.html"
    assert write(Document("one"), target) == target
    write(Document("two"), str(target))
    assert "<h1>two</h1>" in target.read_text(encoding="utf-8")
    assert os.listdir(target.parent) == ["report.html"]
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        write(Document("x"), tmp_path)
    with pytest.raises(InputError, match=r"cannot write the report to .*name a file in a folder you may write"):
        write(Document("x"), tmp_path / "file" / "report.html")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    target = tmp_path / "report.html"
    write(Document("old"), target)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write(Document("new"), target)
    assert "<h1>old</h1>" in target.read_text(encoding="utf-8")
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["file", "report.html"]
