# shellcheck shell=bash
# Sourced by the scripts beside it: their options, and the commands they run or, with --dry-run, print.
#
#   options zone count=1 spot -- "$@"    --zone=Z must be given, --count is 1 if not; --dry-run may be given to all. What stands behind
#                                        a -- of the command line is the arguments of cm_jax, and must be there.
#   echo "${given[zone]}"; run gcloud ... "${arguments[@]}"

declare -A given
declare -a arguments=()
me=$(basename "$0")
dry=

refuse() {
  echo "$me: $1" >&2
  exit 2
}

options() {
  local known=() needed=() missing=() name
  while [ "$1" != -- ]; do
    name=${1%%=*}
    known+=("$name")
    if [ "$1" = "$name" ]; then needed+=("$name"); else given[$name]=${1#*=}; fi
    shift
  done
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry=yes ;;
      --) shift; arguments=("$@"); break ;;
      --*=*)
        name=${1%%=*} name=${name#--}
        [[ " ${known[*]} " == *" $name "* ]] || refuse "--$name = ${1#*=}: expected one of: ${known[*]/#/--}"
        given[$name]=${1#*=}
        ;;
      *) refuse "$1: expected --NAME=VALUE of: ${known[*]/#/--}, --dry-run, then -- and the arguments of cm_jax" ;;
    esac
    shift
  done
  for name in "${needed[@]}"; do [ -n "${given[$name]:-}" ] || missing+=("--$name"); done
  [ ${#missing[@]} -eq 0 ] || refuse "missing: ${missing[*]}"
}

# the arguments of cm_jax must be there
needs_arguments() {
  [ ${#arguments[@]} -gt 0 ] || refuse "missing: what to run, behind a --, such as: -- train --config=configs/cifar10_ect.py --workdir=/data/ect"
}

# What a run writes must outlive the machines: a bucket, or a folder under $1, which is mounted there ("" if nothing is); $2 says how to
# mount something. --ephemeral=yes lets it go with them.
outlives() {
  local mounted=$1 how=$2 word name=
  [ "${given[ephemeral]}" = no ] || return 0
  for word in "${arguments[@]}"; do
    case $word in
      --workdir | --out) name=${word#--}; continue ;;
      --workdir=* | --out=*) name=${word%%=*} name=${name#--} word=${word#*=} ;;
    esac
    [ -n "$name" ] || continue
    if [[ $word != gs://* && $word != s3://* ]] && { [ -z "$mounted" ] || [[ $word/ != "$mounted"/* ]]; }; then
      refuse "--$name = $word: expected gs:// or s3://, or a folder that outlives the machine: $how; --ephemeral=yes lets it go with it"
    fi
    name=
  done
}

# a command line as a shell reads it
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

run() {
  if [ -n "$dry" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# a tool that a real run needs
tool() {
  [ -n "$dry" ] || command -v "$1" >/dev/null || refuse "$1: not found: $2"
}
