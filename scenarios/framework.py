"""A training framework as the cost model sees it: what it overlaps, what it adds to a step and to memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """Behaviour of one framework and version; ``sources`` says where each figure comes from, or on which rows it was fitted.

    Host: ``step_overhead_s`` per optimizer step that no GPU work hides; ``host_layer_s`` to enqueue a layer's forward and backward,
    ``host_layer_tp_s`` more with tensor parallelism (a stage runs at the slower of host and device); ``host_contention_s`` per layer and
    tensor rank more when pipelines span nodes.

    Overlap: ``overlap_*_frac`` is the part of compute that communication of an axis can hide behind (``dp``: all-reduces and ZeRO-3's
    gathers; ``shard``: the scatters and gathers of stages 1 and 2; ``tp_backward``: the part of the weight-gradient matmuls, which do not
    wait for the message). All-reduced gradients travel in messages of ``bucket_bytes``,
    scattered gradients and gathered weights of ``shard_bucket_bytes`` (a layer at a time under ZeRO-3).

    Experts: ``two_level_dispatch`` sends a token once to each node and fans out inside; ``dispatch_fp8`` sends it in 8 bits.

    Kernels: ``sustained_frac`` of a matmul's back-to-back rate holds inside a model; ``attention_kernel`` is the card's ``best`` or plain
    ``fa2``, at ``attention_frac`` of its rate; ``elementwise_passes`` multiplies the minimal traffic of norms, rope and activations;
    ``accumulate_passes`` that of summing gradients over micro-batches (0: fused into the matmul).

    Memory: a layer saves ``saved_hidden`` tensors of hidden width, and ``saved_attention``, ``saved_ffn`` times the minimal sets; the loss
    holds ``logits_bytes_per_element`` (streamed ``loss_passes`` times over a forward and backward); ``buffer_bytes`` of communication
    buffers; ``context_bytes`` of CUDA context and libraries; ``fragmentation_frac`` of dynamic memory lost by the allocator.

    ``error_frac`` is the median error of step times on measured runs that no constant was fitted on.
    """

    name: str
    step_overhead_s: float = 0.02
    host_layer_s: float = 0.003
    host_layer_tp_s: float = 0.0
    host_contention_s: float = 0.0
    overlap_dp_frac: float = 0.9
    overlap_shard_frac: float = 0.9
    overlap_tp_frac: float = 0.0
    overlap_tp_backward_frac: float = 0.0
    overlap_cp_frac: float = 1.0
    overlap_ep_frac: float = 0.0
    two_level_dispatch: bool = True
    dispatch_fp8: bool = False
    sustained_frac: float = 0.85
    attention_kernel: Literal["best", "fa2"] = "best"
    attention_frac: float = 1.0
    elementwise_passes: float = 1.0
    bucket_bytes: float = 100e6
    shard_bucket_bytes: float = 500e6
    accumulate_passes: float = 0.0
    grad_dtype_bytes: int = 4
    master_weights: bool = True
    saved_hidden: float = 4.0
    saved_attention: float = 1.0
    saved_ffn: float = 1.0
    logits_bytes_per_element: float = 10.0
    loss_passes: float = 2.0
    buffer_bytes: float = 1.0e9
    context_bytes: float = 0.7e9
    fragmentation_frac: float = 0.05
    error_frac: float = 0.2
    aliases: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
