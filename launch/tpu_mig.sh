#!/usr/bin/env bash
# A TPU slice as a managed instance group of Compute Engine (v5p, v6e, TPU7x), which runs the image as it starts.
#   bash launch/tpu_mig.sh --name=ect --project=P --zone=us-east5-a --machine-type=ct6e-standard-4t --topology=4x4 --hosts=4 \
#     --image=REGION-docker.pkg.dev/P/REPO/cm_jax:tpu --os-family=FAMILY --os-project=ubuntu-os-accelerator-images \
#     --nfs=10.0.0.2:/share -- train --config=configs/cifar10_ect.py --workdir=/data/ect
#   bash launch/tpu_mig.sh --delete=yes ...the same options...
# What was made is removed again if a later step fails, and by --delete=yes. The OS image's family is told by
# gcloud compute images list --project=ubuntu-os-accelerator-images
# --nfs (a Filestore's ADDRESS:/SHARE) is mounted at /data of every host; what is written elsewhere on it is lost with it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

options name project zone machine-type topology hosts image os-family os-project=ubuntu-os-accelerator-images \
  service-account= disk=200GB model=STANDARD nfs= ephemeral=no delete=no -- "$@"
tool gcloud "https://docs.cloud.google.com/sdk/docs/install"
name=${given[name]} zone=${given[zone]} region=${given[zone]%-*}
account=()
[ -z "${given[service-account]}" ] || account=(--service-account="${given[service-account]}")
compute=(gcloud --project="${given[project]}" --quiet compute)
group=("${compute[@]}" instance-groups managed delete "$name" --zone="$zone")
template=("${compute[@]}" instance-templates delete "$name")
policy=("${compute[@]}" resource-policies delete "$name" --region="$region")

if [ "${given[delete]}" = yes ]; then
  status=0
  run "${group[@]}" || status=$?
  run "${template[@]}" || status=$?
  run "${policy[@]}" || status=$?
  exit "$status"
fi
needs_arguments
outlives "${given[nfs]:+/data}" "/data with --nfs=ADDRESS:/SHARE"

startup=$(mktemp)
made=()
clean() {
  local status=$?
  rm -f "$startup"
  if [ "$status" != 0 ]; then
    for what in "${made[@]}"; do
      case $what in
        group) "${group[@]}" || true ;;
        template) "${template[@]}" || true ;;
        policy) "${policy[@]}" || true ;;
      esac
    done
  fi
  exit "$status"
}
trap clean EXIT
{
  echo '#!/usr/bin/env bash'
  echo "IMAGE=$(quoted "${given[image]}")"
  echo "NFS=$(quoted "${given[nfs]}")"
  echo "ARGUMENTS=($(quoted "${arguments[@]}"))"
  tail -n +2 "$here/on_host.sh"
} >"$startup"
if [ -n "$dry" ]; then
  echo "# the startup script of each host:"
  sed 's/^/#   /' "$startup"
fi
# the last first: what is removed first
run "${compute[@]}" resource-policies create workload-policy "$name" --region="$region" --type=HIGH_THROUGHPUT \
  --accelerator-topology="${given[topology]}"
made=(policy "${made[@]}")
run "${compute[@]}" instance-templates create "$name" --machine-type="${given[machine-type]}" --maintenance-policy=TERMINATE \
  --provisioning-model="${given[model]}" --image-family="${given[os-family]}" --image-project="${given[os-project]}" \
  --boot-disk-size="${given[disk]}" "${account[@]}" --scopes=cloud-platform \
  --metadata-from-file=startup-script="$startup"
made=(template "${made[@]}")
run "${compute[@]}" instance-groups managed create "$name" --zone="$zone" --size="${given[hosts]}" --template="$name" \
  --default-action-on-vm-failure=do-nothing \
  --workload-policy="projects/${given[project]}/regions/$region/resourcePolicies/$name"
