"""A training framework as the cost model sees it: what it overlaps, what it adds to a step and to memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """Behaviour of one framework and version. ``overlap_*_frac`` is the part of that communication it can hide at best.

    ``step_overhead_s`` is host time per optimizer step that no GPU work hides; ``launch_s`` is host time to enqueue one kernel;
    ``kernels_per_layer`` is how many a layer's forward enqueues beside its matmuls and attention (fused norms count one).
    ``buffer_bytes`` are communication buckets and workspaces; ``context_bytes`` CUDA context and libraries;
    ``fragmentation_frac`` the allocator's loss on dynamic memory. A layer saves ``saved_hidden`` tensors of the hidden width and
    ``saved_attention``, ``saved_ffn`` times the minimal set of attention and FFN tensors. ``error_frac`` is the median error of
    step times on measured runs of this framework that no constant was fitted on. ``sources`` says where each figure comes from or how fitted.
    """

    name: str
    step_overhead_s: float
    launch_s: float
    kernels_per_layer: int
    fused_elementwise: bool
    overlap_dp_frac: float
    overlap_tp_frac: float
    overlap_cp_frac: float
    overlap_ep_frac: float
    buffer_bytes: float
    context_bytes: float
    fragmentation_frac: float
    grad_dtype_bytes: int = 4
    master_weights: bool = True
    elementwise_passes: float = 1.0
    saved_hidden: float = 4.0
    saved_attention: float = 1.0
    saved_ffn: float = 1.0
    logits_bytes_per_element: float = 12.0
    error_frac: float = 0.2
    aliases: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
