#!/usr/bin/env bash
# 16 ranks of Megatron-LM (core 0.16.1) on 2 node(s); extra arguments go to pretrain_gpt.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${MEGATRON_LM:?set MEGATRON_LM to a checkout of Megatron-LM}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTHONPATH="$MEGATRON_LM${PYTHONPATH:+:$PYTHONPATH}"
ARGUMENTS=(
  --num-layers 32
  --hidden-size 4096
  --ffn-hidden-size 14336
  --num-attention-heads 32
  --seq-length 32768
  --max-position-embeddings 32768
  --position-embedding-type rope
  --normalization RMSNorm
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --rotary-base 500000
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  --attention-backend flash
  --kv-channels 128
  --group-query-attention
  --num-query-groups 8
  --tensor-model-parallel-size 4
  --pipeline-model-parallel-size 2
  --context-parallel-size 2
  --sequence-parallel
  --cp-comm-type p2p
  --num-virtual-stages-per-pipeline-rank 4
  --use-distributed-optimizer
  --overlap-grad-reduce
  --overlap-param-gather
  --recompute-granularity full
  --recompute-method uniform
  --recompute-num-layers 1
  --bf16
  --micro-batch-size 1
  --global-batch-size 8
  --train-iters 10
  --optimizer adam
  --lr 1e-05
  --weight-decay 0.0
  --adam-beta2 0.95
  --clip-grad 1
  --tokenizer-type NullTokenizer
  --vocab-size 128256
  --mock-data
  --eval-iters 0
  --log-interval 1
  --log-throughput
  --distributed-timeout-minutes 60
)
: "${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:?set NODE_RANK to 0 ... 1, another on each node}}"
exec torchrun --nnodes 2 --nproc_per_node 8 --node_rank "$NODE_RANK" \
  --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "$MEGATRON_LM/pretrain_gpt.py" "${ARGUMENTS[@]}" "$@"
