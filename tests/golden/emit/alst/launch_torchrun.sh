#!/usr/bin/env bash
# 8 ranks of train.py on 1 node(s); arguments go to the script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-14}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec torchrun --standalone --nproc_per_node 8 train.py "$@"
