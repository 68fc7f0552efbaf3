#!/usr/bin/env bash
# A SLURM cluster of virtual nodes on this machine, for tests. As root, after scripts/install_slurm.sh:
#   scripts/slurm_testbed.sh start DIR [NODES=2] [GPUS_PER_NODE=2]   prints the variables to export
#   scripts/slurm_testbed.sh stop DIR
# Loopback ports only; GPUs are device nodes that look like /dev/null. Everything lives in DIR, which
# must be new. Partitions: `main` (default), `high` (its jobs pre-empt those of main, which requeue).
set -euo pipefail

usage() { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }

free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])
PY
}

write_configuration() {
  local host ports i gpu
  host=$(hostname -s)
  read -ra ports < <(free_ports $((nodes + 1)))
  cat > "$dir/slurm.conf" <<CONF
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# without cred_expire a requeued job waits for two minutes
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=5
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
# memory is sampled every second, and a job over its limit is killed
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MaxArraySize=${KVX_TESTBED_MAX_ARRAY:-1001}
GresTypes=gpu
DefMemPerNode=1500
CONF
  echo CgroupAutomount=no > "$dir/cgroup.conf"
  : > "$dir/gres.conf"
  for i in $(seq "$nodes"); do
    mkdir -p "$dir/spool/n$i"
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[$i]} CPUs=4" \
      "RealMemory=8000 Gres=gpu:$gpus State=UNKNOWN" >> "$dir/slurm.conf"
    for gpu in $(seq 0 $((gpus - 1))); do
      mknod "$dir/dev/n$i.gpu$gpu" c 1 3
      echo "NodeName=n$i Name=gpu File=$dir/dev/n$i.gpu$gpu" >> "$dir/gres.conf"
    done
  done
  cat >> "$dir/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1
PartitionName=high Nodes=ALL State=UP PriorityTier=10
CONF
}

start() {
  [ ! -e "$dir/slurm.conf" ] || { echo "$dir: holds a cluster already; take a new directory" >&2; exit 2; }
  mkdir -p "$dir"/{state,log,dev}
  chmod 755 "$dir"
  write_configuration
  head -c 1024 /dev/urandom > "$dir/munge.key"
  chmod 400 "$dir/munge.key"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --seed-file="$dir/munge.seed" \
    --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" 2> /dev/null
  slurmctld -i
  for i in $(seq "$nodes"); do slurmd -N "n$i"; done
  for _ in $(seq 150); do
    if [ "$(sinfo -h -p main -t idle -o %D 2> /dev/null)" = "$nodes" ]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.1
  done
  echo "the cluster did not come up:" >&2
  tail -qn 20 "$dir"/log/*.log >&2
  stop
  exit 1
}

stop() {
  local pids=() file pid
  timeout 5 scancel --user="$(id -un)" 2> /dev/null || true
  for _ in $(seq 50); do
    [ -n "$(timeout 2 squeue -h 2> /dev/null)" ] || break
    sleep 0.1
  done
  for file in "$dir"/slurmd.*.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    if [ -s "$file" ]; then pids+=("$(cat "$file")"); fi
  done
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2> /dev/null || true
  done
  rm -f "$dir"/*.pid
}

[ $# -ge 2 ] || usage
dir=$(realpath -m "$2")
nodes=${3:-2}
gpus=${4:-2}
export SLURM_CONF=$dir/slurm.conf
case $1 in
  start) start ;;
  stop) stop ;;
  *) usage ;;
esac
