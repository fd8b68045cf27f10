# The everyday commands. `make` alone lists them.

# Python for the environment: the first of these that is 3.11 or newer. `make demo PYTHON=python3.12` names another.
PYTHON ?= python3.11 python3
python = $(shell for p in $(PYTHON); do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

# The rules of the workflow call `python`, which must be the one of the environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format lock clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s%s\n", $$1, $$2}' Makefile

.venv/.installed: requirements.lock
	$(if $(python),,$(error wmdd needs Python 3.11 or newer: install it, or say where it is with PYTHON=/path/to/python3))
	$(python) -m venv .venv
	.venv/bin/pip install -q -r requirements.lock
	touch $@

setup: .venv/.installed  ## install the pinned packages into .venv

demo: setup  ## run the whole workflow on a small dataset
	.venv/bin/snakemake --configfile config/config.yaml

test: setup  ## run the tests
	.venv/bin/python -m pytest

lint: setup  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/snakefmt --check Snakefile rules
	.venv/bin/mypy wmdd

format: setup  ## rewrite the sources in the agreed style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/snakefmt Snakefile rules

lock: setup  ## pin the newest packages that pyproject.toml allows
	envs/lock.sh

clean:  ## remove the environment and the caches, never data or results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build wmdd.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
