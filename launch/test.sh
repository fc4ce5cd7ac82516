#!/usr/bin/env bash
# What must hold. Without an argument: lint, types and the quick tests, what to run before a commit. With --all: the slow tests too, as
# CI does. Further arguments go to pytest. Both end with a list of what did not run here, and why.
#   bash launch/test.sh                    bash launch/test.sh --all                   bash launch/test.sh tests/sampling -x
set -euo pipefail
cd "$(dirname "$0")/.."

which=(-m "not slow" --dist=loadfile)  # one worker a file: what its tests share is made once
extras=()
if [ "${1:-}" = --all ]; then
  which=(--dist=loadgroup)  # the slow ones of a file side by side
  extras=(parity)
  shift
fi

source launch/environment.sh
environment test
for name in "${extras[@]}"; do extra "$name"; done

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest --numprocesses="$(getconf _NPROCESSORS_ONLN)" "${which[@]}" "$@"
