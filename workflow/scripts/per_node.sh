#!/usr/bin/env bash
# One call per node, inside srun: `per_node.sh torchrun ARGUMENTS` runs torchrun with the rendezvous address.
# The rule's own shell cannot know it: outside of srun, Snakemake removes SLURM_JOB_NODELIST from the
# environment.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs on one node do not share a port.
port=$((20000 + SLURM_JOB_ID % 20000))
command=$1
shift
exec "$command" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" "$@"
