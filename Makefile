# Two commands do everything on a bare machine with Python 3.10 to 3.13:
#   make demo    draws a data set, trains on full masks, on rectangles and by BoxSup, and writes reports
#   make test    ruff, mypy and all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export MIXSUP_CACHE ?= $(CURDIR)/$(VENV)/cache

.PHONY: demo test lint browser clean

demo: $(VENV)/installed
	$(BIN)/mixsup demo --out mixsup-demo

test: $(VENV)/installed-test browser lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .[test]
	touch $@ $(VENV)/installed

# The report is tested in a real browser. Where none is installed and apt can install one, it does; elsewhere that test says why it cannot run.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium here: the browser test of the report will be skipped"

clean:
	rm -rf $(VENV) mixsup-demo
