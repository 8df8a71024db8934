# make demo    the whole story on real text, in minutes; installs what it needs on first use
# make test    every test            make quick   without the slow ones
# make check   lint, format, types, import direction
#
# Everything goes into the active virtual environment or, where none is active, into .venv.

SHELL := /bin/bash
PYTHON3 ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check

# What to install where torch is not there yet. For a CPU or CUDA build of your choice, set it to what PyTorch's
# installation page says for your machine: make demo TORCH='torch --index-url ...'
TORCH ?= torch==2.13.0

# Two test processes of one thread each are faster on small models than one of two threads.
JOBS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo install test quick check clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.handful-demo
	HF_HUB_OFFLINE=1 $(VENV)/bin/handful demo

install: $(VENV)/.handful-dev

test: install
	$(TEST_ENV) $(PYTHON) -m pytest -n $(JOBS) --dist worksteal

quick: install
	$(TEST_ENV) $(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m "not slow" -x

check: install
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PYTHON) -m pyright --pythonpath $(PYTHON)
	$(VENV)/bin/lint-imports --no-logo

clean:
	rm -rf .venv .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(PYTHON):
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, found $$($(PYTHON3) --version); hint: make PYTHON3=python3.11" >&2; exit 1; }
	$(PYTHON3) -m venv $(VENV)

# torch first and by itself, so that nothing else decides which build of it comes.
$(VENV)/.handful-torch: | $(PYTHON)
	$(PYTHON) -c 'import torch' 2>/dev/null || $(PIP) install $(TORCH) || $(PIP) install 'torch>=2.4'
	touch $@

$(VENV)/.handful-demo: pyproject.toml requirements/demo.txt | $(VENV)/.handful-torch
	$(PIP) install -e '.[peft]'
	$(PIP) install --no-deps --require-hashes -r requirements/demo.txt
	touch $@

$(VENV)/.handful-dev: pyproject.toml requirements/demo.txt requirements/test.txt | $(VENV)/.handful-torch
	$(PIP) install -e '.[dev]'
	$(PIP) install --no-deps --require-hashes -r requirements/test.txt
	touch $@
