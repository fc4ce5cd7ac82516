#!/usr/bin/env bash
# What a TPU VM does: run the image, and again while it ends with 75 (stopped and saved). Settings come from who copies it here: the lines
# IMAGE=..., NFS=... and ARGUMENTS=(...) before this one. Hosts of a slice find each other by the metadata server.
set -uo pipefail
registry=${IMAGE%%/*}
docker-credential-gcr configure-docker --registries="$registry" 2>/dev/null || gcloud auth configure-docker "$registry" --quiet
volume=()
if [ -n "$NFS" ]; then
  command -v mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common
  sudo mkdir -p /data
  # hard: a server that is away is waited for, and not told to cm_jax as an error
  if ! mountpoint -q /data && ! sudo mount -t nfs -o hard "$NFS" /data; then
    echo "$NFS: cannot be mounted at /data"
    exit 1
  fi
  volume=(--volume=/data:/data)
fi
while :; do
  docker run --rm --name cm_jax --privileged --network host --stop-timeout 300 "${volume[@]}" "$IMAGE" "${ARGUMENTS[@]}"
  status=$?
  [ "$status" = 75 ] || break
done
echo "cm_jax ended with status $status"
exit "$status"
