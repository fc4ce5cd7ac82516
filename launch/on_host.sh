#!/usr/bin/env bash
# What a TPU VM does: run the image, and again while it ends with 75 (stopped and saved). Settings come from who copies it here: the lines
# IMAGE=... and ARGUMENTS=(...) before this one. Hosts of a slice find each other by the metadata server.
set -uo pipefail
registry=${IMAGE%%/*}
docker-credential-gcr configure-docker --registries="$registry" 2>/dev/null || gcloud auth configure-docker "$registry" --quiet
while :; do
  docker run --rm --name cm_jax --privileged --network host --stop-timeout 300 "$IMAGE" "${ARGUMENTS[@]}"
  status=$?
  [ "$status" = 75 ] || break
done
echo "cm_jax ended with status $status"
exit "$status"
