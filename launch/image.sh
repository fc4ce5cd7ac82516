#!/usr/bin/env bash
# Build the image of launch/Dockerfile, and push it with --push=yes.
# TPU images reach gs://; --extras=s3 or --extras=gcs adds what others need.
#   bash launch/image.sh --for=tpu --tag=us-central1-docker.pkg.dev/PROJECT/REPO/cm_jax:tpu --push=yes      (or --for=gpu, --for=cpu)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

options for tag push=no extras= -- "$@"
plain=python:3.13-slim
case ${given[for]} in
  tpu) base=us-docker.pkg.dev/cloud-tpu-images/jax-ai-image/tpu:latest extra=tpu,gcs ;;
  gpu) base=$plain extra=cuda ;;
  cpu) base=$plain extra= ;;
  *) refuse "--for = ${given[for]}: expected tpu, gpu or cpu" ;;
esac
tool docker "https://docs.docker.com/engine/install/"
extra=$extra${given[extras]:+${extra:+,}${given[extras]}}
run docker build --file "$here/Dockerfile" --build-arg BASE="$base" --build-arg EXTRA="$extra" --tag "${given[tag]}" "$here/.."
[ "${given[push]}" != yes ] || run docker push "${given[tag]}"
