"""The tables as schema version 1 made them, written out so that they stay what they were."""

import json

from sqlalchemy import create_engine, text

TABLES = """
CREATE TABLE project (id {serial} NOT NULL, name VARCHAR(250) NOT NULL, created {double} NOT NULL, PRIMARY KEY (id),
    UNIQUE (name));
CREATE TABLE metric_name (id {serial} NOT NULL, name VARCHAR(250) NOT NULL, PRIMARY KEY (id), UNIQUE (name));
CREATE TABLE schema_version (id INTEGER NOT NULL, version INTEGER NOT NULL, since {double} NOT NULL, PRIMARY KEY (id));
CREATE TABLE run (id {serial} NOT NULL, project_id INTEGER NOT NULL, name VARCHAR(250) NOT NULL,
    status VARCHAR(16) NOT NULL, config JSON NOT NULL, environment JSON NOT NULL, started {double} NOT NULL,
    ended {double}, host VARCHAR(300) NOT NULL, pid BIGINT NOT NULL, heartbeat {double} NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(project_id) REFERENCES project (id));
CREATE INDEX ix_run_project_id ON run (project_id);
CREATE TABLE metric (run_id INTEGER NOT NULL, name_id INTEGER NOT NULL, step BIGINT NOT NULL, wall {double} NOT NULL,
    value {double}, kind SMALLINT NOT NULL, stderr {double}, PRIMARY KEY (run_id, name_id, step),
    FOREIGN KEY(run_id) REFERENCES run (id), FOREIGN KEY(name_id) REFERENCES metric_name (id)) {without};
CREATE TABLE "array" (run_id INTEGER NOT NULL, name_id INTEGER NOT NULL, step BIGINT NOT NULL, wall {double} NOT NULL,
    dtype VARCHAR(16) NOT NULL, shape JSON NOT NULL, data {blob} NOT NULL, PRIMARY KEY (run_id, name_id, step),
    FOREIGN KEY(run_id) REFERENCES run (id), FOREIGN KEY(name_id) REFERENCES metric_name (id));
CREATE TABLE alert (id {serial} NOT NULL, run_id INTEGER NOT NULL, step BIGINT, wall {double} NOT NULL,
    level VARCHAR(16) NOT NULL, title VARCHAR(250) NOT NULL, text TEXT NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(run_id) REFERENCES run (id));
CREATE INDEX ix_alert_run_id ON alert (run_id);
CREATE TABLE artifact (id {serial} NOT NULL, run_id INTEGER NOT NULL, name VARCHAR(250) NOT NULL,
    wall {double} NOT NULL, mime VARCHAR(100) NOT NULL, path TEXT, data {blob}, PRIMARY KEY (id),
    UNIQUE (run_id, name), FOREIGN KEY(run_id) REFERENCES run (id));
CREATE TABLE model_version (id {serial} NOT NULL, run_id INTEGER NOT NULL, name VARCHAR(250) NOT NULL, step BIGINT,
    wall {double} NOT NULL, digest VARCHAR(128), details JSON NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(run_id) REFERENCES run (id));
CREATE INDEX model_version_run ON model_version (run_id)
"""
ROWS = """
INSERT INTO schema_version VALUES (1, 1, 0);
INSERT INTO project (name, created) VALUES ('old', 0);
INSERT INTO metric_name (name) VALUES ('loss');
INSERT INTO run (project_id, name, status, config, environment, started, ended, host, pid, heartbeat)
    VALUES (1, 'veteran', 'finished', :config, :nothing, 1, 2, 'h', 1, 2);
INSERT INTO metric VALUES (1, 1, 5, 1, 0.5, 0, NULL);
INSERT INTO metric VALUES (1, 1, 6, 1, NULL, 1, NULL);
INSERT INTO "array" VALUES (1, 1, 5, 1, '<f4', :shape, :data);
INSERT INTO alert (run_id, step, wall, level, title, text) VALUES (1, 5, 1, 'warning', 'beware', '');
INSERT INTO artifact (run_id, name, wall, mime, path, data) VALUES (1, 'file', 1, 'x', NULL, :data);
INSERT INTO model_version (run_id, name, step, wall, digest, details) VALUES (1, 'v', 5, 1, 'ab', :nothing)
"""
KINDS = {
    "sqlite": {"serial": "INTEGER", "double": "DOUBLE", "blob": "BLOB", "without": "WITHOUT ROWID"},
    "postgresql": {"serial": "SERIAL", "double": "DOUBLE PRECISION", "blob": "BYTEA", "without": ""},
}


def make(target):
    """A store of schema version 1 with one run."""
    engine = create_engine(target if "://" in str(target) else f"sqlite:///{target}")
    values = {"config": json.dumps({"lr": 0.1}), "nothing": "{}", "shape": "[2]", "data": b"\x00\x00\x80?\x00\x00\x00@"}
    with engine.begin() as connection:
        for statement in TABLES.format(**KINDS[engine.dialect.name]).split(";"):
            connection.execute(text(statement))
        for statement in ROWS.split(";"):
            given = {name: value for name, value in values.items() if f":{name}" in statement}
            connection.execute(text(statement), given)
    engine.dispose()


def check(store):
    """What version 1 held is there, and what version 2 added can be used."""
    (info,) = store.runs()
    assert (info.name, info.config, info.parent, info.tags) == ("veteran", {"lr": 0.1}, None, ())
    columns = store.metrics(info.id, "loss")
    assert columns.steps.tolist() == [5, 6]
    assert columns.values[0] == 0.5
    assert columns.values[1] != columns.values[1]
    (array,) = store.arrays(info.id, "loss")
    assert (array.value.tolist(), array.attributes) == ([1.0, 2.0], {})
    (alert,) = store.alerts(info.id)
    assert (alert.title, alert.rule, alert.run_id) == ("beware", None, info.id)
    (version,) = store.model_versions()
    assert (version.name, version.digest, version.baseline, version.run_id) == ("v", "ab", {}, info.id)
    store.tag(info.id, "old", "keep")
    with store.run("young", parent=info.id, tags=["new"]) as run:
        run.log_array("s", [1.0], step=0, attributes={"floor": 0.5})
        run.alert("a", rule="r")
        run.model_version("v2", baseline={"loss": 1.0})
        run.tag("newer")
    assert store.info(info.id).tags == ("keep", "old")
    young = store.info(run.id)
    assert (young.parent, young.tags) == (info.id, ("new", "newer"))
    assert store.arrays(run.id, "s")[0].attributes == {"floor": 0.5}
    assert store.alerts(run.id)[0].rule == "r"
    assert store.model_version(run.id, "v2").baseline["loss"][0] == 1.0
    store.remove([info.id])
    assert store.info(run.id).parent is None
    assert [info.name for info in store.runs()] == ["young"]
