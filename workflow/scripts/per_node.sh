#!/usr/bin/env bash
# One call a node, inside srun: `per_node.sh torchrun ARGUMENTS` runs torchrun with the address at which the nodes meet.
# The rule's own shell cannot know it: outside of srun Snakemake takes SLURM_JOB_NODELIST out of the environment.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet at one port
command=$1
shift
exec "$command" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" "$@"
