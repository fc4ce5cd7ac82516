#!/usr/bin/env bash
# Start launch/skypilot.yaml as a managed job.
#   bash launch/sky.sh --name=ect --gpus=H100:8 --extra=cuda -- train --config=configs/cifar10_ect.py --workdir=/data/ect
#   bash launch/sky.sh --name=ect --gpus=tpu-v6e-8 --extra=tpu --infra=gcp -- train ...
# /data stands for a file system that every node sees and that outlives them; a bucket, s3:// or gs://, does as well (--extra=cuda,s3).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

options name gpus extra nodes=1 infra= spot=no -- "$@"
needs_arguments
tool sky "pip install skypilot"
more=()
[ -z "${given[infra]}" ] || more+=(--infra "${given[infra]}")
[ "${given[spot]}" = no ] || more+=(--use-spot)
run sky jobs launch --yes --name "${given[name]}" --gpus "${given[gpus]}" --num-nodes "${given[nodes]}" "${more[@]}" \
  --env EXTRA="${given[extra]}" --env ARGUMENTS="$(quoted "${arguments[@]}")" "$here/skypilot.yaml"
