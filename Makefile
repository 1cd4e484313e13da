# Everything needs only Python >= 3.11 with venv, and make; the first target that runs sets up .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench docs compat clean

demo: $(READY)  ## tune, restart, four processes, and a key that collides
	$(BIN)/fi-cachestore demo

test: check docs  ## everything that must hold: style, types, layers, tests, docs
	$(BIN)/python -m pytest -q -n 2

check: $(READY)  ## style, types and layers alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation, warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(READY)  ## side by side with FlashInfer on this machine, one table
	FI_CACHESTORE_STATE_DIR=/dev/null $(BIN)/python benchmarks/run.py

compat: $(READY)  ## the adapter's tests against the oldest and other supported FlashInfer releases (downloads them)
	$(BIN)/python tests/compat.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test,docs,bench]"
	touch $@

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
