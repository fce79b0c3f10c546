# Everything runs in .venv, which is built on first use and again when a requirements file changes.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
ARGS ?=

# Idle OpenMP threads that spin cost a busy machine most of its speed.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-faults lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Build .venv with the tested versions

$(INSTALLED): requirements.txt requirements-sweep.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

demo: $(INSTALLED) ## Train the quickstart; ARGS="optim.steps=100" changes settings
	$(PY) train.py quickstart $(ARGS)

test: $(INSTALLED) ## Run the tests that answer soon; ARGS="-k rules" selects some
	$(PY) -m pytest -n auto -m "not slow" $(ARGS)

test-all: $(INSTALLED) ## Run all tests; ARGS="-m slow" runs what `make test` leaves out
	$(PY) -m pytest -n auto $(ARGS)

test-faults: $(INSTALLED) ## Kill, damage and starve runs in every way; ARGS="--kind NAME" selects
	$(PY) tests/faults/inject.py $(ARGS)

lint: $(INSTALLED) ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED) ## Format the code and mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## Remove caches of tools; runs/, cache/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
