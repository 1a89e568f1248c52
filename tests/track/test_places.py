"""Where a store can be, and what is said about places where it cannot."""

import os
import sqlite3
import subprocess
import sys
import tempfile

import pytest
from sqlalchemy import Column, Integer, insert, inspect, select, text

from dynaxx.track import Store, StoreError, schema
from dynaxx.track.database import Database


def test_the_default_journal_is_write_ahead(tmp_path):
    with Store(tmp_path / "deep" / "er" / "a.db") as store:
        assert store.database.journal_mode == "wal"


def test_where_write_ahead_is_refused_the_rollback_journal_takes_its_place(tmp_path):
    # this VFS has no shared memory, as network file systems have none, so SQLite really refuses
    with Store(f"sqlite:///file:{tmp_path / 'a.db'}?vfs=unix-dotfile&uri=true") as store:
        assert store.database.journal_mode == "delete"
        run = store.run()
        run.log({"a": 1.0}, step=0)
        assert store.summary(run.id) == {"a": 1.0}


def test_a_store_in_memory_serves_all_threads():
    with Store("sqlite://", interval=0.01) as store:
        run = store.run()
        for step in range(50):
            run.log({"a": step}, step=step)
        assert len(store.metrics(run.id, "a")) == 50


def refused(target, words, **options):
    with pytest.raises(StoreError, match=words) as caught:
        Store(target, **options)
    return str(caught.value)


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x" * 5000)
    refused(tmp_path / "file" / "a.db", "cannot make the folder.*name a file elsewhere")
    refused(tmp_path, "is a folder; name a file in it")
    refused(tmp_path / "file", "no SQLite file")
    refused(tmp_path / "none.db", "there is no run store at", readonly=True)
    assert not (tmp_path / "none.db").exists()
    refused("", "no place for a run store")
    refused("nonsense://x", "no database SQLAlchemy knows")
    assert "secret" not in refused("post gres://user:secret@host/db", "cannot be read")
    assert "secret" not in refused(f"sqlite://user:secret@/{tmp_path}", ".")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of another kind")
def test_a_folder_that_may_not_be_written(tmp_path):
    with Store(tmp_path / "closed" / "a.db") as store:
        run = store.run("kept")
        run.log({"a": 1.0})
    (tmp_path / "closed" / "a.db").chmod(0o444)
    (tmp_path / "closed").chmod(0o555)
    code = (
        "import os, sys; from dynaxx.track import Store, StoreError\n"
        "folder = sys.argv[1]\n"
        "Store('sqlite://').close()\n"  # imports all it needs while it may still read Python's own folders
        "os.geteuid() == 0 and os.setuid(65534)\n"
        "for name in ('a.db', 'new.db', 'sub/new.db'):\n"
        "    try: Store(os.path.join(folder, name)); print('opened')\n"
        "    except StoreError as error: print(error)\n"
        "print(Store(os.path.join(folder, 'a.db'), readonly=True).runs()[0].name)\n"
    )
    above = [folder for folder in (tmp_path, *tmp_path.parents) if folder.is_relative_to(tempfile.gettempdir())]
    for folder in above[:-1]:
        folder.chmod(folder.stat().st_mode | 0o055)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "closed")], capture_output=True, text=True, check=False
    )
    (tmp_path / "closed").chmod(0o755)
    lines = answer.stdout.splitlines()
    assert len(lines) == 4, answer.stderr
    assert "may not be written by this user" in lines[0]
    assert "cannot be written" in lines[1]
    assert "cannot make the folder" in lines[2]
    assert lines[3] == "kept"


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.db"
    Store(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE schema_version SET version = 7")
    for readonly in (False, True):
        refused(path, f"schema version 7 and this dynaxx knows up to {schema.VERSION}; upgrade", readonly=readonly)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(7,)]


def test_tables_of_another_program_are_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE run (x)")
    refused(path, "'run' but no 'schema_version'")
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("run",)]


def test_an_older_schema_is_migrated_step_by_step_or_not_at_all(tmp_path):
    path = tmp_path / "a.db"
    Store(path).close()
    database = Database(path)
    with database.writing() as connection:
        connection.execute(text("UPDATE schema_version SET version = 1"))
    add = lambda name: lambda connection: connection.execute(text(f"ALTER TABLE run ADD COLUMN {name} INTEGER"))

    def broken(connection):
        add("c")(connection)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError), database.writing() as connection:
        schema.prepare(connection, 4, {1: add("a"), 2: add("b"), 3: broken})
    with database.reading() as connection:
        assert schema.stored_version(connection) == 1
        assert not {"a", "b", "c"} & {column["name"] for column in inspect(connection).get_columns("run")}
    with database.writing() as connection:
        assert schema.prepare(connection, 3, {1: add("a"), 2: add("b")}) == (1, 3)
    with database.writing() as connection:
        assert schema.stored_version(connection) == 3
        assert {"a", "b"} <= {column["name"] for column in inspect(connection).get_columns("run")}
        with pytest.raises(StoreError, match="nothing leads from 3 to 4"):
            schema.prepare(connection, 4, {})
    database.close()


def test_other_databases_replace_rows_by_deleting_them(tmp_path, monkeypatch):
    from dynaxx.track import sql

    monkeypatch.setattr(sql, "_DIALECTS", ())
    with Store(tmp_path / "a.db") as store:
        run = store.run()
        for value in (1.0, 2.0):
            run.log({"a": value, "b": value}, step=0)
            store.flush()
        assert store.summary(run.id) == {"a": 2.0, "b": 2.0}


def test_tables_declare_what_they_refer_to(tmp_path):
    with (
        Store(tmp_path / "a.db") as store,
        pytest.raises(Exception, match="FOREIGN KEY"),
        store.database.writing() as c,
    ):
        c.execute(insert(schema.alert).values(run_id=99, wall=0.0, level="info", title="", text=""))
    with Store(tmp_path / "a.db") as store, store.database.reading() as c:
        assert c.execute(select(schema.alert)).all() == []
    assert isinstance(schema.run.c.id, Column)
    assert isinstance(schema.run.c.id.type, Integer)
