"""What the vendor's libraries reach through torch: cuBLAS GEMMs and the scaled-dot-product attention backends."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import attention, matmul
from .draw import Draw
from .spec import TORCH, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, dims, grid, joined

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def _gemm_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    m, n, k = dims(shape, "m", "n", "k")
    kind = TORCH_DTYPE[dtype]
    out = {"int8": torch.int32, "fp8": torch.bfloat16}.get(dtype, kind)
    if dtype == "int8":
        a, w = draw.integers(-127, 128, m, k, dtype=kind), draw.integers(-127, 128, n, k, dtype=kind)
    else:
        a, w = draw.normal(m, k, dtype=kind), draw.normal(n, k, dtype=kind)
    one = draw.given([1.0], torch.float32).view(())
    return {"a": a, "w": w, "c": draw.empty(m, n, dtype=out), "one": one}


def _gemm_run(inputs: Inputs, config: Config) -> None:
    a, w, c = inputs["a"], inputs["w"].T, inputs["c"]
    if a.dtype == torch.int8:
        torch._int_mm(a, w, out=c)
    elif a.dtype == torch.float8_e4m3fn:
        torch._scaled_mm(a, w, inputs["one"], inputs["one"], out_dtype=c.dtype, out=c)
    else:
        torch.mm(a, w, out=c)


def _gemm_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {"c": inputs["a"].double() @ inputs["w"].double().T}


def _sdpa_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    batch, length, heads, kv_heads, dim = dims(shape, "batch_size", "seq_len", "num_heads", "num_kv_heads", "head_dim")
    kind = TORCH_DTYPE[dtype]
    return {
        "q": draw.normal(batch, heads, length, dim, dtype=kind),
        "k": draw.normal(batch, kv_heads, length, dim, dtype=kind),
        "v": draw.normal(batch, kv_heads, length, dim, dtype=kind),
        "out": draw.empty(batch, heads, length, dim, dtype=kind),
    }


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str) -> torch.Tensor:
    with sdpa_kernel(BACKENDS[backend]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _sdpa_run(inputs: Inputs, config: Config, backend: str) -> None:
    inputs["out"] = _sdpa(inputs["q"], inputs["k"], inputs["v"], backend)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    scores = q @ k.repeat_interleave(group, 1).mT / math.sqrt(q.shape[3])
    scores = scores.masked_fill(~attention.visible(length, length, 0, 0), -math.inf)
    return scores.softmax(-1) @ v.repeat_interleave(group, 1)


def _sdpa_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {"out": _causal(*(inputs[name].double() for name in ("q", "k", "v")))}


def _backward_inputs(shape: Shape, dtype: str, draw: Draw, backend: str) -> Inputs:
    inputs = _sdpa_inputs(shape, dtype, draw)
    leaves = [inputs[name].detach().requires_grad_() for name in ("q", "k", "v")]
    out = _sdpa(leaves[0], leaves[1], leaves[2], backend)
    grads = {f"d{name}": draw.empty(*inputs[name].shape, dtype=inputs[name].dtype) for name in ("q", "k", "v")}
    return inputs | grads | {"leaves": leaves, "out_graph": [out], "d_out": draw.normal(*out.shape, dtype=out.dtype)}


def _backward_run(inputs: Inputs, config: Config) -> None:
    grads = torch.autograd.grad(inputs["out_graph"], inputs["leaves"], inputs["d_out"], retain_graph=True)
    inputs["dq"], inputs["dk"], inputs["dv"] = grads


def _backward_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    leaves = [inputs[name].double().requires_grad_() for name in ("q", "k", "v")]
    grads = torch.autograd.grad(_causal(*leaves), leaves, inputs["d_out"].double())
    return dict(zip(("dq", "dk", "dv"), grads, strict=True))


def _backward_flops(shape: Shape, dtype: str) -> float:
    """``10 · pairs · heads · dim``."""
    return 2.5 * attention.flops(shape, dtype)


def _backward_bytes(shape: Shape, dtype: str) -> float:
    """Twice the forward's: every tensor of it, and its gradient."""
    return 2 * attention.moved_bytes(shape, dtype)


_LENGTHS = tuple(s for s in grid(batch_size=(1, 4, 16), seq_len=(128, 512, 2048, 8192, 32768), window_size=(0,))
                 if int(s["batch_size"]) * int(s["seq_len"]) <= 131072)  # fmt: skip
_SHAPES = joined(joined(_LENGTHS, attention.HEADS), grid(head_dim=(64, 128)))
_CHECKS = (
    {"batch_size": 1, "seq_len": 70, "num_heads": 2, "num_kv_heads": 2, "head_dim": 64},
    {"batch_size": 2, "seq_len": 33, "num_heads": 4, "num_kv_heads": 4, "head_dim": 128},
)


def _attention(backend: str, check_dtypes: tuple[str, ...]) -> KernelSpec:
    return KernelSpec(
        name=f"sdpa_{backend}", family="attention_context", framework=TORCH, dtypes=("bfloat16",), outputs=("out",),
        make_inputs=_sdpa_inputs, run=partial(_sdpa_run, backend=backend), reference=_sdpa_reference, flops=attention.flops,
        moved_bytes=attention.moved_bytes, shapes=_SHAPES, checks=_CHECKS, check_dtypes=check_dtypes, tolerance_factor=2.0,
        min_capability={"bfloat16": 80, "float16": 80, "float32": 999},
    )  # fmt: skip


SPECS = (
    KernelSpec(
        name="cublas_gemm",
        family="gemm",
        framework=TORCH,
        dtypes=("bfloat16", "float16", "fp8", "int8"),
        outputs=("c",),
        make_inputs=_gemm_inputs,
        run=_gemm_run,
        reference=_gemm_reference,
        flops=matmul.flops,
        moved_bytes=matmul.moved_bytes,
        shapes=matmul.SHAPES,
        checks=({"m": 32, "n": 48, "k": 64}, {"m": 128, "n": 64, "k": 256}),
        check_dtypes=("float32", "int8"),
        min_capability={"fp8": 89},
    ),
    _attention("flash", ("float32",)),
    _attention("efficient", ()),
    _attention("cudnn", ()),
    KernelSpec(
        name="sdpa_flash_backward",
        family="attention_backward",
        framework=TORCH,
        dtypes=("bfloat16",),
        outputs=("dq", "dk", "dv"),
        make_inputs=partial(_backward_inputs, backend="flash"),
        run=_backward_run,
        reference=_backward_reference,
        flops=_backward_flops,
        moved_bytes=_backward_bytes,
        shapes=_SHAPES,
        checks=_CHECKS,
        check_dtypes=("float32",),
        modes=("eager",),
        tolerance_factor=2.0,
        min_capability={"bfloat16": 80, "float16": 80, "float32": 999},
    ),
)
