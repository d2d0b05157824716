"""Fused cross-entropy over the vocabulary: the loss of each token and the gradient of its logits in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, dims, grid, next_power_of_2


@triton.jit
def _cross_entropy(logits, labels, loss, grad, vocab, scale, BLOCK: tl.constexpr):
    """``loss = log Σ exp(x) − x[label]``; ``grad = (softmax(x) − onehot) · scale``; the row is read twice, no probability is stored."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    top = tl.full((BLOCK,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, vocab, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * vocab + col, mask=col < vocab, other=0.0).to(tl.float32)
        x = tl.where(col < vocab, x, float("-inf"))
        new_top = tl.maximum(top, x)
        total = total * tl.exp(top - new_top) + tl.exp(x - new_top)
        top = new_top
    peak = tl.max(top, 0)
    log_sum = peak + tl.log(tl.sum(total * tl.exp(top - peak), 0))
    tl.store(loss + row, log_sum - tl.load(logits + row * vocab + label).to(tl.float32))
    for start in range(0, vocab, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * vocab + col, mask=col < vocab, other=0.0).to(tl.float32)
        slope = (tl.exp(x - log_sum) - tl.where(col == label, 1.0, 0.0)) * scale
        tl.store(grad + row * vocab + col, slope.to(grad.dtype.element_ty), mask=col < vocab)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, vocab = dims(shape, "num_tokens", "vocab_size")
    kind = TORCH_DTYPE[dtype]
    return {
        "logits": draw.normal(tokens, vocab, dtype=kind, scale=3.0), "labels": draw.integers(0, vocab, tokens, dtype=torch.int64),
        "loss": draw.empty(tokens, dtype=torch.float32), "grad": draw.empty(tokens, vocab, dtype=kind),
    }  # fmt: skip


def _run(inputs: Inputs, config: Config) -> None:
    tokens, vocab = inputs["logits"].shape
    block = min(config["BLOCK"], next_power_of_2(vocab))
    _cross_entropy[(tokens,)](
        inputs["logits"], inputs["labels"], inputs["loss"], inputs["grad"], vocab, 1.0, BLOCK=block, num_warps=config["num_warps"]
    )


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    x = inputs["logits"].double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x, inputs["labels"], reduction="none")
    return {"loss": loss.detach(), "grad": torch.autograd.grad(loss.sum(), x)[0]}


def _no_flops(shape: Shape, dtype: str) -> float:
    """Bound by memory on every card: element-wise arithmetic is not counted."""
    return 0.0


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """Logits in once, gradients out once, label and loss."""
    tokens, vocab = dims(shape, "num_tokens", "vocab_size")
    return 2.0 * tokens * vocab * ITEM_BYTES[dtype] + 12.0 * tokens


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"BLOCK": 4096, "num_warps": 8}, {"BLOCK": 8192, "num_warps": 16})


SPECS = (
    KernelSpec(
        name="cross_entropy",
        family="loss",
        dtypes=("bfloat16", "float32"),
        outputs=("loss", "grad"),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_no_flops,
        moved_bytes=_moved_bytes,
        shapes=grid(num_tokens=(16, 128, 1024, 4096, 16384), vocab_size=(32000, 128256)),
        # one token of a tiny vocabulary may have a loss near 0, whose digits any kernel loses to rounding: hence many
        checks=({"num_tokens": 7, "vocab_size": 1000}, {"num_tokens": 1, "vocab_size": 9001}, {"num_tokens": 33, "vocab_size": 2}),
        configs=_configs,
    ),
)
