#!/usr/bin/env bash
# Submit a run with XPK, to a cluster that XPK made (others: gcluster.sh or gke.sh). It restarts whatever the status: set --max-restarts.
#   bash launch/xpk.sh --name=ect --project=P --zone=us-central1-a --cluster=C --tpu-type=v5litepod-8 \
#     --image=REGION-docker.pkg.dev/P/REPO/cm_jax:tpu -- train --config=configs/cifar10_ect.py --workdir=gs://BUCKET/runs/ect
# --mounted=/data: where a storage that 'xpk storage attach' put on the cluster is mounted, for runs of several hosts.
set -euo pipefail
source "$(dirname "$0")/common.sh"

options name project zone cluster tpu-type image num-slices=1 max-restarts=3 mounted= ephemeral=no -- "$@"
needs_arguments
outlives "${given[mounted]}" "under --mounted=/PATH, of a storage attached with 'xpk storage attach'"
tool xpk "pip install xpk"
run xpk workload create --project="${given[project]}" --zone="${given[zone]}" --cluster="${given[cluster]}" \
  --workload="${given[name]}" --tpu-type="${given[tpu-type]}" --num-slices="${given[num-slices]}" \
  --max-restarts="${given[max-restarts]}" --docker-image="${given[image]}" --command="$(quoted python -m cm_jax "${arguments[@]}")"
