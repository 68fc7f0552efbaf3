#!/usr/bin/env bash
# SLURM's daemons from Debian's or Ubuntu's packages, for tests on one machine. Needs root.
set -euo pipefail
have() { command -v slurmctld slurmd munged sbatch > /dev/null; }
have && exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  slurmctld slurmd slurm-client munge > /dev/null
have
