#!/bin/bash
# Prunes a model on several nodes, each process holding a part of it. It has not been run on a
# cluster yet.
#
#     sbatch examples/prune_on_slurm.sh meta-llama/Llama-3.1-70B /shared/corpus.txt /shared/run
#
# All nodes have to see the run folder. A process that is lost makes all start again from the last
# checkpoint; so does Slurm when it takes the nodes back and gives them again.
#SBATCH --job-name=disp-llm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
set -euo pipefail
model=$1 text=$2 run=$3

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # which would keep the addresses of lost processes
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_PER_NODE" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
  -m disp_llm prune "$model" --text "$text" --output-dir "$run" \
  --shard full --resume auto
