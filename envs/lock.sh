#!/usr/bin/env bash
# Writes requirements.lock: what pip installs for pyproject.toml, extras included, in a throw-away environment.
#
# torch and torchvision stay as the present lock has them, because they only fit each other in pairs: to move them,
# edit their two lines and run this. Call it as `make lock`, which sees to .venv and its Python.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

grep -E '^torch(vision)?=' requirements.lock >"$scratch/constraints.txt"

.venv/bin/python -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q ".[all,dev]" -c "$scratch/constraints.txt"
{
    cat <<'HEADER'
# Made by `make lock`: pip freeze of a fresh environment with everything that pyproject.toml names, extras included.
# torch has three equal signs because two also accept a local `+cpu` build, whose torchvision operators are missing.
# The packages that only the Linux builds of torch need are marked, so that the rest installs elsewhere too.
HEADER
    # setuptools (--all) is needed by torch; a local version such as +cu130 would tie the lock to one kind of machine.
    "$scratch/venv/bin/pip" freeze --all --exclude pip --exclude wmdd | sed -E \
        -e 's/\+[[:alnum:].]+$//' \
        -e 's/^torch==/torch===/' \
        -e '/^(nvidia-|cuda-|triton=)/s/$/; platform_system == "Linux"/'
} >"$scratch/requirements.lock"
cp "$scratch/requirements.lock" requirements.lock
