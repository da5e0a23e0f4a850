#!/usr/bin/env bash
# A Slurm cluster of two nodes on this one machine, each with 8 pretend CPUs and 4 pretend GPUs: `up.sh STATE_DIR`, as root.
# Needs slurmctld, slurmd and munged (Debian: apt-get install slurm-wlm munge); systemd is not needed. `down.sh STATE_DIR` stops it.
set -euo pipefail
state=$(realpath -m "${1:?the folder for its state}")
for program in slurmctld slurmd munged; do
  command -v "$program" > /dev/null || { echo "up.sh: $program is not installed (apt-get install slurm-wlm munge)" >&2; exit 3; }
done
[ "$(id -u)" = 0 ] || { echo 'up.sh: needs root' >&2; exit 3; }
host=$(hostname -s)
mkdir -p "$state/controller" /etc/slurm /run/munge /var/log/munge /var/lib/munge
grep -qw node1 /etc/hosts || echo '127.0.0.1 node1 node2' >> /etc/hosts # torch looks the nodes' names up

# munge signs messages between the daemons; its folders have to be its own
chown munge: /run/munge /var/log/munge /var/lib/munge
[ -s /etc/munge/munge.key ] || su -s /bin/sh munge -c /usr/sbin/mungekey
if ! munge -n > /dev/null 2>&1; then
  su -s /bin/sh munge -c /usr/sbin/munged
  cp /run/munge/munged.pid "$state/munged.pid"
fi

# A GPU is any character device: Slurm only looks whether it is one. Four different ones make CUDA_VISIBLE_DEVICES 0 to 3.
printf 'AutoDetect=off\n' > /etc/slurm/gres.conf
for device in null zero full random; do
  printf 'NodeName=node[1-2] Name=gpu File=/dev/%s\n' "$device" >> /etc/slurm/gres.conf
done
cat > /etc/slurm/slurm.conf << CONF
ClusterName=minillm
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=6817
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node.%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.%n.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=3600
MpiDefault=none
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=8 RealMemory=64000 Gres=gpu:4 State=UNKNOWN
PartitionName=cpu Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=node[1-2] MaxTime=INFINITE State=UP
CONF
slurmctld
slurmd -N node1
slurmd -N node2
for _ in $(seq 60); do
  [ "$(sinfo -h -N -t idle -p gpu -o %N | wc -l)" = 2 ] && exit 0
  sleep 1
done
echo "up.sh: the nodes are not idle after a minute; see $state/*.log" >&2
exit 1
