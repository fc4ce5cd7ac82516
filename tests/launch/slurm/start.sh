#!/bin/sh
# Start a Slurm of one node on this machine, for tests that submit real jobs: start.sh FOLDER PORT, as root. The folder gets its
# configuration, state and logs; what runs has its process id in ctld.pid and d.pid there, and munged.pid if munge was not running.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 port=$2
mkdir -p "$folder/state" "$folder/spool"
sed "s#@DIR@#$folder#g; s#@HOST@#$(hostname -s)#g; s#@PORT@#$port#; s#@PORT1@#$((port + 1))#" "$here/slurm.conf.in" >"$folder/slurm.conf"
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge /run/munge /var/log/munge /var/lib/munge
  su -s /bin/sh munge -c '/usr/sbin/munged --force'
  cp /run/munge/munged.pid "$folder/munged.pid"
fi
export SLURM_CONF="$folder/slurm.conf"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in 1 2 3 4 5 6 7 8 9 10; do
  srun -n1 true 2>/dev/null && exit 0
  sleep 1
done
echo "slurm did not come up; see $folder/*.log" >&2
exit 1
