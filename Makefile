# For everyone: `make lab` opens the live trainer, `make test` runs all tests.
# For development: stress, notebooks, lab-picture, bench, lint, clean.

PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

.PHONY: lab test stress lint notebooks lab-picture bench clean
.DEFAULT_GOAL := lab

lab: .venv/core
	$(BIN)/python -m qllk lab $(LAB_OPTIONS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) --dist loadfile -m "not browser and not long"
	$(BIN)/python -m qllk.lab.notebooks check notebooks/*.ipynb
	QLLK_HOME=$$(mktemp -d) QLLK_FAST=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) --dist loadfile \
		--nbval --nbval-current-env --nbval-cell-timeout=300 notebooks
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) --dist loadfile -m browser tests/browser

# What takes too long for every change: kills, full disks, damaged files, odd command lines, wheels.
stress: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) -m long

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Run every notebook again and store its outputs.
notebooks: .venv/dev
	QLLK_FAST=1 OMP_NUM_THREADS=1 $(BIN)/python -m qllk.lab.notebooks refresh notebooks/*.ipynb

# Train for a minute in the lab, and store a picture of its panel.
lab-picture: .venv/dev
	QLLK_LAB_PICTURE="$(CURDIR)/notebooks/images/lab.png" $(BIN)/pytest -k front_page tests/browser/test_lab_page.py

bench: .venv/core
	$(BIN)/python -m qllk bench $(BENCH_OPTIONS)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'qllk needs Python 3.11 or newer, this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/core: .venv/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
