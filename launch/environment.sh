# shellcheck shell=bash
# Sourced by the scripts beside it: `environment WHAT` makes .venv (once) and installs cm_jax into it, with its test tools if WHAT is "test";
# sets PYTHON.

environment() {
  local base stamp wanted
  base=${PYTHON_BASE:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$("$base" --version): cm_jax needs Python 3.11 or newer (set PYTHON_BASE)" >&2; return 1; }
  [ -x .venv/bin/python ] || "$base" -m venv .venv
  PYTHON=.venv/bin/python
  stamp=.venv/cm_jax-$1
  wanted=$(cat requirements.txt setup.cfg pyproject.toml | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (once)" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$([ "$1" = test ] && echo '.[test]' || echo .)"
    echo "$wanted" >"$stamp"
  fi
}

# `extra NAME` adds an extra of setup.cfg, once, in versions that agree with the test tools: moto alone would bring a boto that s3fs cannot
# use. Where it cannot be installed, the tests that need it say so at their end.
extra() {
  local stamp wanted
  stamp=.venv/cm_jax-extra-$1
  wanted=$(sha256sum <setup.cfg)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing the extra $1 into .venv (once)" >&2
    if "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[test,$1]"; then
      echo "$wanted" >"$stamp"
    else
      echo "the extra $1 could not be installed: going on without" >&2
    fi
  fi
}
