#!/usr/bin/env bash
# 8 ranks of train.py on 1 node(s) through the deepspeed launcher
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-14}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec deepspeed --num_gpus 8 train.py "$@"
