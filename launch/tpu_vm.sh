#!/usr/bin/env bash
# LEGACY: TPU VMs by the Cloud TPU API, which is in maintenance and does not know TPU7x: for v5e, v5p, v6e where gke.sh, gcluster.sh and
# tpu_mig.sh cannot be used. Asks for a slice in the queue, waits, runs the image on all its hosts, and gives the slice back.
#   bash launch/tpu_vm.sh --name=ect --project=P --zone=us-central1-a --type=v5litepod-8 --image=... \
#     -- train --config=configs/cifar10_ect.py --workdir=gs://BUCKET/runs/ect
# --keep=yes leaves the slice. --nfs (a Filestore's ADDRESS:/SHARE) is mounted at /data of every host. The exit status is cm_jax's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

options name project zone type image runtime=v2-alpha-tpuv5-lite spot=no wait=3600 poll=15 keep=no nfs= ephemeral=no -- "$@"
needs_arguments
outlives "${given[nfs]:+/data}" "/data with --nfs=ADDRESS:/SHARE"
[[ ${given[type]} != tpu7x* && ${given[type]} != v7* ]] || refuse "--type = ${given[type]}: expected v5e, v5p or v6e: TPU7x is not in this API (tpu_mig.sh, gke.sh)"
tool gcloud "https://docs.cloud.google.com/sdk/docs/install"
name=${given[name]}
where=(--project="${given[project]}" --zone="${given[zone]}")
queued=(gcloud compute tpus queued-resources)
spot=()
[ "${given[spot]}" = no ] || spot=(--spot)

script=$(mktemp)
asked=
clean() {
  local status=$?
  rm -f "$script"
  if [ -n "$asked" ] && [ "${given[keep]}" != yes ]; then
    run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet || true
  fi
  exit "$status"
}
trap clean EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
{
  echo "IMAGE=$(quoted "${given[image]}")"
  echo "NFS=$(quoted "${given[nfs]}")"
  echo "ARGUMENTS=($(quoted "${arguments[@]}"))"
  tail -n +2 "$here/on_host.sh"
} >"$script"

asked=yes
run "${queued[@]}" create "$name" "${where[@]}" --node-id="$name" --accelerator-type="${given[type]}" \
  --runtime-version="${given[runtime]}" "${spot[@]}"
state=
deadline=$((SECONDS + given[wait]))
until [ -n "$dry" ] || [ "$state" = ACTIVE ]; do
  state=$("${queued[@]}" describe "$name" "${where[@]}" --format='value(state.state)')
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDED | SUSPENDING) refuse "$name: the slice is $state" ;;
  esac
  [ $SECONDS -lt $deadline ] || refuse "$name: still $state after ${given[wait]} s (--wait)"
  sleep "${given[poll]}"
done
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$(quoted bash -c "$(cat "$script")")"
