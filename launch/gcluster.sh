#!/usr/bin/env bash
# Submit a run with Google's Cluster Toolkit to a GKE cluster, as a JobSet behind Kueue.
#   bash launch/gcluster.sh --name=ect --project=P --cluster=C --location=us-central1-a --compute-type=ct5lp-hightpu-8t --topology=2x4 \
#     --image=REGION-docker.pkg.dev/P/REPO/cm_jax:tpu -- train --config=configs/cifar10_ect.py --workdir=gs://BUCKET/runs/ect
# --mount goes to gcluster as it is (its --mount); --mounted=/data says where that is, for runs of several hosts.
set -euo pipefail
source "$(dirname "$0")/common.sh"

options name project cluster location compute-type image topology= queue= num-slices= mount= mounted= ephemeral=no -- "$@"
needs_arguments
outlives "${given[mounted]}" "with --mount=VOLUME, under its --mounted=/PATH"
tool gcluster "https://docs.cloud.google.com/cluster-toolkit/docs"
more=()
for name in topology queue num-slices mount; do [ -z "${given[$name]}" ] || more+=("--$name=${given[$name]}"); done
run gcluster job submit --project="${given[project]}" --cluster="${given[cluster]}" --location="${given[location]}" \
  --name="${given[name]}" --compute-type="${given[compute-type]}" --image="${given[image]}" "${more[@]}" \
  --command="$(quoted python -m cm_jax "${arguments[@]}")"
