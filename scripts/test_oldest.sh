#!/usr/bin/env bash
# The fast tests with the oldest supported set of packages (constraints-oldest.txt), in a virtual environment of their own.
#   scripts/test_oldest.sh [pytest arguments]
# torch 2.11 comes with CUDA from the package index: about 5 GB to fetch. VENV_OLDEST names the environment's folder.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV_OLDEST:-.venv-oldest}
if [ ! -e "$venv/.installed" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet -c constraints-oldest.txt -e '.[test]'
  touch "$venv/.installed"
fi
exec "$venv/bin/python" -m pytest -q -n auto --maxprocesses 4 "$@"
