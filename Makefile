# The README's commands. Each makes the environment it needs, from a bare clone and a bare Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint wheel clean

demo: $(VENV)/ready
	$(BIN)/neuralloader demo

test: $(VENV)/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/ready-for-tests
	$(BIN)/pytest -m slow

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

wheel: $(VENV)/ready-for-tests
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info demo

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neuralloader needs Python 3.11 or newer, not " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	touch $@
