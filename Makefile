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

# On Linux the locked torch is that of PyPI, built with CUDA 13: a GPU needs NVIDIA's driver 580 or newer
# (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html). Another build of the same version is
# taken from an index, which .venv/.installed keeps; an empty one is PyPI again. https://download.pytorch.org/whl/torch/
# lists the builds.
#     make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu      no GPU
#     make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126    CUDA 12.6
INSTALLED := $(shell cat .venv/.installed 2>/dev/null)
TORCH_INDEX ?= $(INSTALLED)
ifneq ($(TORCH_INDEX),$(INSTALLED))
.PHONY: .venv/.installed
clear = --clear
endif

.venv/.installed: requirements.lock pyproject.toml
	$(if $(python),,$(error wmdd needs Python 3.11.4 or newer: install it, or say where it is with PYTHON=/path/to/python3))
	@rm -f $@
	$(python) -m venv $(clear) .venv
ifeq ($(TORCH_INDEX),)
	.venv/bin/pip install -q -r requirements.lock
else
	sed -nE 's/^(torch|torchvision)=+/\1==/p' requirements.lock >.venv/torch.txt
	.venv/bin/pip install -q --index-url "$(TORCH_INDEX)" -r .venv/torch.txt
	grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)=' requirements.lock >.venv/others.txt
	.venv/bin/pip install -q -r .venv/others.txt
endif
	.venv/bin/pip install -q --no-deps --no-build-isolation -e .
	echo "$(TORCH_INDEX)" >$@

setup: .venv/.installed  ## install wmdd and the pinned packages into .venv; TORCH_INDEX=… for a driver older than 580, or no GPU

profile: setup  ## let `snakemake --profile slurm` find profiles/slurm
	@.venv/bin/wmdd profile slurm

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
	.venv/bin/snakefmt --check Snakefile workflow/Snakefile rules
	.venv/bin/snakemake --lint
	.venv/bin/mypy wmdd
	.venv/bin/lint-imports

format: setup  ## rewrite the sources in the agreed style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/snakefmt Snakefile workflow/Snakefile rules

lock: setup  ## pin the newest packages that pyproject.toml allows
	envs/lock.sh

clean:  ## remove the environment and the caches, never data or results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis build wmdd.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
