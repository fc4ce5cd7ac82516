#!/usr/bin/env bash
# Fill a manifest of launch/gke and apply it to the cluster that kubectl speaks to; --dry-run prints it and what would be run.
#   bash launch/gke.sh jobset_tpu --name=ect --image=REGION-docker.pkg.dev/PROJECT/REPO/cm_jax:tpu --accelerator=tpu-v5-lite-podslice \
#     --topology=2x4 --hosts=1 --chips=8 --claim=runs -- train --config=configs/cifar10_ect.py --init=/data/edm --workdir=/data/ect
#   bash launch/gke.sh rbac                    bash launch/gke.sh jobset_gpu --name=ect --image=... --hosts=1 --gpus=8 -- train ...
#   bash launch/gke.sh kueue --resource=google.com/tpu --quota=8 ...         bash launch/gke.sh delete --name=ect
# The options of a manifest are the names in it; those without a default must be given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

what=${1:-}
[ $# -gt 0 ] && shift
if [ "$what" = delete ]; then
  options name namespace=default -- "$@"
  tool kubectl "https://kubernetes.io/docs/tasks/tools/"
  run kubectl delete jobset "${given[name]}" --namespace "${given[namespace]}"
  exit
fi
template=$here/gke/$what.yaml
[ -n "$what" ] && [ -f "$template" ] || refuse "$what: expected one of: $(cd "$here/gke" && echo *.yaml | sed 's/\.yaml//g') delete"
values=() after=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --) shift; after=("$@"); break ;;
    --*=*) values+=("${1#--}") ;;
    *) refuse "$1: expected --NAME=VALUE, --dry-run, then -- and the arguments of cm_jax" ;;
  esac
  shift
done
if grep -q ':arguments}' "$template"; then
  arguments=("${after[@]}")
  needs_arguments
fi
manifest=$(mktemp)
trap 'rm -f "$manifest"' EXIT
python3 "$here/fill.py" "$template" "${values[@]}" -- "${after[@]}" >"$manifest" || exit
if [ -n "$dry" ]; then
  cat "$manifest"
  echo "# kubectl apply --filename THIS"
  exit
fi
tool kubectl "https://kubernetes.io/docs/tasks/tools/"
kubectl apply --filename "$manifest"
