#!/usr/bin/env bash
# Everything that must hold: lint, types, the whole test suite. Arguments go to pytest: bash launch/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."

source launch/environment.sh
environment test

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
