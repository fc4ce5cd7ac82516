#!/usr/bin/env bash
# Several processes on this machine, as on several hosts:
#   bash launch/local_multi.sh --processes=2 -- train --config=configs/digits_edm.py --workdir=runs/two
# The status is that of the first that fails; the others are then ended: asked, and after --grace seconds killed. SIGTERM, SIGHUP and Ctrl-C
# go to all. PYTHON is the interpreter (python).
set -uo pipefail
source "$(dirname "$0")/common.sh"

options processes port=0 grace=60 -- "$@"
needs_arguments
[[ ${given[processes]} =~ ^[1-9][0-9]*$ ]] || refuse "--processes = ${given[processes]}: expected 1 or more"
python=${PYTHON:-python}
port=${given[port]}
[ "$port" != 0 ] || port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
command=("$python" -m cm_jax "${arguments[@]}")

if [ -n "$dry" ]; then
  for ((i = 0; i < given[processes]; i++)); do
    quoted JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="${given[processes]}" JAX_PROCESS_ID="$i" "${command[@]}"
    echo
  done
  exit
fi

set -m # each in a process group of its own: Ctrl-C comes to this script alone, and goes on from here once
left=()
told=
tell() {
  told=$1
  for pid in "${left[@]}"; do kill -"$1" -- -"$pid" 2>/dev/null || true; done
}
for signal in TERM HUP INT; do
  # shellcheck disable=SC2064 # which signal it is, is known now
  trap "tell $signal" "$signal"
done
for ((i = 0; i < given[processes]; i++)); do
  JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="${given[processes]}" JAX_PROCESS_ID="$i" "${command[@]}" </dev/null &
  left+=($!)
done

status=0 killer=
while [ ${#left[@]} -gt 0 ]; do
  ended=
  wait -n -p ended "${left[@]}"
  code=$?
  [ -n "${ended:-}" ] || continue # a signal came
  rest=()
  for pid in "${left[@]}"; do [ "$pid" = "$ended" ] || rest+=("$pid"); done
  left=("${rest[@]}")
  if [ $code != 0 ] && [ $status = 0 ]; then
    status=$code
    # one that has stopped and saved (75) has done so at a step that all agreed on: they end by themselves
    [ $code = 75 ] || [ -n "$told" ] || tell TERM
    (sleep "${given[grace]}"; for pid in "${left[@]}"; do kill -KILL -- -"$pid" 2>/dev/null; done) &
    killer=$!
    disown "$killer" # its end is no news
  fi
done
[ -z "$killer" ] || kill -- -"$killer" 2>/dev/null
exit $status
