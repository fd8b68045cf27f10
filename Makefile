# The everyday commands. `make` alone lists them.

# Python for the environment: the first of these that is 3.11.4 or newer. `make demo PYTHON=python3.12` names another.
PYTHON ?= python3.11 python3
python = $(shell for p in $(PYTHON); do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null && echo "$$p" && break; done)

# The rules of the workflow call `python`, which must be the one of the environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup profile demo report test test-slurm test-campaign docs lint format lock clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile

.venv/.installed: requirements.lock
	$(if $(python),,$(error wmdd needs Python 3.11.4 or newer: install it, or say where it is with PYTHON=/path/to/python3))
	$(python) -m venv .venv
	.venv/bin/pip install -q -r requirements.lock
	touch $@

setup: .venv/.installed  ## install the pinned packages into .venv

# Snakemake looks for `--profile slurm` in the working folder, in the user's folder and in /etc/xdg, but not in profiles/.
profile: place = $(if $(XDG_CONFIG_HOME),$(XDG_CONFIG_HOME),$(HOME)/.config)/snakemake
profile:  ## let `snakemake --profile slurm` find profiles/slurm
	@mkdir -p "$(place)"
	@if [ -e "$(place)/slurm" ] && [ ! "$(place)/slurm" -ef profiles/slurm ]; then \
		echo "$(place)/slurm is there already and is another profile: rename one, or use --profile profiles/slurm" >&2; exit 1; fi
	@ln -sfn "$(CURDIR)/profiles/slurm" "$(place)/slurm"
	@echo "$(place)/slurm -> $(CURDIR)/profiles/slurm; your cluster's partitions go into its config.v8+.yaml"

CONFIG ?= config/config.yaml
demo: setup  ## run the whole workflow on a small dataset, and write the report
	.venv/bin/snakemake --configfile config/config.yaml

report: setup  ## write the report of an experiment, and Snakemake's own: make report CONFIG=config/cifar10.yaml
	.venv/bin/snakemake figures --configfile $(CONFIG)
	.venv/bin/snakemake --configfile $(CONFIG) --report results/report/snakemake.html

test: setup  ## run the tests, two at a time
	.venv/bin/python -m pytest -n 2 --dist loadscope --durations=25

test-slurm: setup  ## run the workflow on a real SLURM, started here for it (as root, on Debian: see docs/use/cluster.md)
	.venv/bin/python -m pytest -rs -m "slurm and not campaign" tests/cluster

test-campaign: setup  ## the same with every fault that a cluster has, half an hour; its result goes into tests/cluster/RESULT.md
	.venv/bin/python -m pytest -rs -m slurm tests/cluster

docs: setup  ## build the documentation and the API reference into build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	PDOC_ALLOW_EXEC=1 .venv/bin/pdoc --docformat google -o build/docs/reference wmdd '!wmdd.cli'

lint: setup  ## check style, types and who imports whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/snakefmt --check Snakefile rules
	.venv/bin/mypy wmdd
	.venv/bin/lint-imports

format: setup  ## rewrite the sources in the agreed style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/snakefmt Snakefile rules

lock: setup  ## pin the newest packages that pyproject.toml allows
	envs/lock.sh

clean:  ## remove the environment and the caches, never data or results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis build wmdd.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
