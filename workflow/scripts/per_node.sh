#!/usr/bin/env bash
# One call per node, inside srun: `per_node.sh ARGUMENTS` runs torchrun with the rendezvous address. The rule's
# own shell cannot know it: outside of srun, Snakemake removes SLURM_JOB_NODELIST from the environment.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs on one node do not share a port.
port=$((20000 + SLURM_JOB_ID % 20000))
# Seconds until a node that the others wait for is given up.
patience=${MINILLM_NODES_PATIENCE:-600}
exec python -m minillm.runtime.several_nodes --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-endpoint="$head:$port" --rdzv-conf="join_timeout=$patience" "$@"
