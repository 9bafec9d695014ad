# make screen: the main job on the embedded model.  make test: the default test suite.  Both install on first use.
# make slow: the tests that take longer, each with its time.
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin

.PHONY: screen test slow lint types wheel clean

screen: .venv/.installed
	$(BIN)/gate screen --techniques all

test: .venv/.installed-test
	$(BIN)/python -m pytest -q

slow: .venv/.installed-test
	$(BIN)/python -m pytest -v -m slow --durations=0

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

wheel: .venv/.installed-test
	$(BIN)/python -m build --wheel --outdir dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf .venv dist build runs
