# `make help` lists the commands; each makes what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLE := build/example
DEMO := build/demo

.PHONY: help setup demo test check format example bench dist clean all
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## make .venv with the pinned versions of everything

$(STAMP): pyproject.toml constraints.txt setup.py
	@echo "making $(VENV): 1.9 GB, one or two minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## score 200,000 example transactions and show what happened
	@$(BIN)/python -m examples.transactions.demo --output $(DEMO)

example: $(STAMP)  ## make the example's data and model packages under build/example
	@$(BIN)/python -m examples.transactions.build --output $(EXAMPLE)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n auto

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## compare with stock Beam and with a plain loop (about five minutes)
	$(BIN)/python -m benchmarks.files
	$(BIN)/python -m benchmarks.predict_cost

dist: $(STAMP)  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:  ## remove what was built, keep .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

all: check test demo  ## what CI runs
