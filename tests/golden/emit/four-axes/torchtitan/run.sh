#!/usr/bin/env bash
# 16 ranks of torchtitan 0.3.0 on 2 node(s); add --hf_assets_path and --dataloader.dataset_path of your own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
OVERRIDES=(
  --module llama3
  --config llama3_8b
  --training.seq_len 8192
  --training.steps 10
  --training.disable_cuda_graphs
  --training.max_norm 1
  --training.local_batch_size 8
  --training.global_batch_size 32
  --parallelism.pipeline_parallel_microbatch_size 1
  --parallelism.data_parallel_replicate_degree 1
  --parallelism.data_parallel_shard_degree 4
  --parallelism.fsdp_reshard_after_forward default
  --parallelism.tensor_parallel_degree 2
  --parallelism.enable_sequence_parallel
  --parallelism.context_parallel_degree 1
  --parallelism.expert_parallel_degree 1
  --parallelism.pipeline_parallel_degree 2
  --parallelism.pipeline_parallel_schedule 1F1B
  --parallelism.pipeline_parallel_layers_per_stage 16
  --parallelism.pipeline_parallel_first_stage_less_layers 0
  --parallelism.pipeline_parallel_last_stage_less_layers 0
  --loss.num_chunks 1
  --metrics.log_freq 1
)
: "${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:?set NODE_RANK to 0 ... 1, another on each node}}"
exec torchrun --nnodes 2 --nproc_per_node 8 --node_rank "$NODE_RANK" \
  --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" -m torchtitan.train "${OVERRIDES[@]}" "$@" activation_checkpoint:none
