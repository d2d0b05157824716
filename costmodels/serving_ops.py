"""Seconds of one forward pass of a serving step on one rank, operation by operation, as arrays over the tokens of the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios import registry
from ..scenarios.calibration import Calibration, load_calibration
from ..scenarios.errors import BadInput, UnknownName
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServingEngine
from .arrays import Array
from .collectives import Network
from .expert_balance import most_loaded, uneven_s
from .gemm_curve import weight_bytes
from .older_products import older_factor
from .roofline import Roofline


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSystem:
    """One cluster under one serving engine, ready to price steps."""

    accelerator: Accelerator
    cluster: Cluster
    engine: ServingEngine
    roofline: Roofline
    network: Network


def serve_system(cluster: Cluster, engine: ServingEngine, calibration: Calibration | None = None) -> ServeSystem:
    """Look up the card and links of a cluster and calibrate them."""
    gpu = registry.accelerator(cluster.gpu)
    fits = calibration or load_calibration(gpu)
    roofline = Roofline(gpu, fits, registry.link(cluster.host_link).bytes_per_s)
    network = Network(cluster, gpu, registry.link(cluster.intra), registry.link(cluster.inter), fits)
    return ServeSystem(accelerator=gpu, cluster=cluster, engine=engine, roofline=roofline, network=network)


def gemm_s(system: ServeSystem, m: Array, n: float, k: float, dtype: str) -> Array:
    """A linear layer. Formats the card cannot multiply are weight-only: 16-bit arithmetic, the weights' own bytes.

    Engines that quantise inside the norm or activation before it save the pass that the measured 8- and 4-bit linears hold. Block-scaled
    products on kernels made for few tokens take ``2·m·n·k / (peak · FEW_TOKENS_FRAC)`` or more. ``older_products``: as in 2024.
    """
    roofline, few = system.roofline, system.engine.few_token_products and dtype == "fp8_block"
    dtype = IN_GRAPH.get(dtype, dtype)
    try:
        system.accelerator.peak_flops_per_s(dtype)
        price = roofline.gemm_s(m, n, k, dtype)
        if system.engine.older_products and weight_bytes(dtype) == 2:
            price = np.maximum(price * older_factor(system.accelerator.arch, m), roofline.gemm_floor_s(m, n, k, dtype))
        if system.engine.fused_quantisation and weight_bytes(dtype) < 2:
            price = np.maximum(price - roofline.quantise_s(m, k, dtype), roofline.gemm_floor_s(m, n, k, dtype))
        slowest = system.accelerator.peak_flops_per_s(dtype) * FEW_TOKENS_FRAC
        return np.maximum(price, 2 * m * n * k / slowest) if few else price
    except (BadInput, UnknownName):
        c = roofline.calibration.fit("gemm.bf16").coefficients
        saved = (2.0 - weight_bytes(dtype)) * n * k / (system.accelerator.hbm_bytes_per_s * c["memory_frac"])
        compute = 2 * m * n * k / (system.accelerator.peak_flops_per_s("bf16") * c["compute_frac"])
        return np.where(m > 0, np.maximum(roofline.gemm_s(m, n, k, "bf16") - saved, c["launch_s"] + compute), 0.0)


FEW_TOKENS_FRAC = 0.03
"""Share of peak that TensorRT-LLM's block-scaled products in flashinfer reach on Blackwell: their tiles of few tokens read the weights
again and again. Fitted on TTFT of the fitting fifth: runs of SGLang that turned DeepGEMM off (calibrate.serving_recipes, launches)."""
IN_GRAPH = {"fp8_block": "fp8"}
"""Formats whose tables hold the host's time -> the format that stands for them. The block-scaled linear was timed launched from Python:
58 to 86 us on H200, 180 us on B200, for any size that takes less. Where the GPU is slower than that, both formats agree within 10 %.
Engines replay CUDA graphs, so the host's time is not theirs."""


def sequence_s(plan: EnginePlan, system: ServeSystem) -> float:
    """Seconds that each running sequence adds to a step beside its kernels' measured times: the host's, and what quantising costs more."""
    engine, dtype = system.engine, IN_GRAPH.get(plan.weight_dtype, plan.weight_dtype)
    if weight_bytes(dtype) >= 2:
        return engine.sequence_cpu_s
    try:
        system.accelerator.peak_flops_per_s(dtype)
    except (BadInput, UnknownName):  # weight-only: activations keep 16 bits
        return engine.sequence_cpu_s
    return engine.sequence_cpu_s + engine.quantised_sequence_s


def dense_ffn_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Gate and up in one product, the activation, down."""
    return _ffn_s(model, system, t, model.ffn_hidden / plan.tp, plan.weight_dtype)


def _ffn_s(model: ModelSpec, system: ServeSystem, t: Array, width: float, dtype: str) -> Array:
    n_in = 2.0 if model.gated_mlp else 1.0
    act = system.roofline.pass_s((n_in + 1) * 2 * t * width)
    return gemm_s(system, t, n_in * width, model.hidden, dtype) + act + gemm_s(system, t, model.hidden, width, dtype)


def own_experts_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Router and shared experts of an MoE layer over the ``t`` tokens of one dp rank.

    Where a column gates the shared experts, a pass scales and adds them (read two, write).
    """
    router = system.roofline.gemm_s(t, model.n_experts, model.hidden) + system.roofline.stream_s(4 * t * model.n_experts)
    if model.shared_expert_gate:
        router = router + system.roofline.gemm_s(t, 1, model.hidden) + system.roofline.stream_s(6 * t * model.hidden)
    return router + _ffn_s(model, system, t, model.shared_hidden / plan.tp, plan.weight_dtype) if model.shared_hidden else router


def moe_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t_all: Array) -> Array:
    """The routed experts of the most loaded rank, over the ``t_all`` tokens of all dp ranks.

    A card with measured fused MoE layers in this format prices the routed part with them: over all tokens where ranks gather them, over
    the rank's own rows where they come by all-to-all (more than GATHER_RANKS). No measured layer has all tokens at the experts of one.
    """
    ep = plan.ep if plan.ep > 1 else 1
    if plan.alike:
        return _unmeasured_experts_s(model, plan, system, t_all, ep)
    formats = _measured_experts(plan, system)
    if formats:
        split = plan.tp * plan.dp / ep
        apart = by_all_to_all(plan)
        routing = "balanced" if apart or plan.expert_skew or plan.redundant_experts else ROUTING

        def even_s(tokens: Array, top_k: int = model.top_k, n_experts: int = model.n_experts, over: int = ep) -> Array:
            def layer_s(t: Array, dtype: str, kernel: str = "") -> Array:
                return system.roofline.moe_layer_s(
                    t,
                    hidden=model.hidden,
                    inter=model.moe_ffn_hidden,
                    topk=top_k,
                    n_experts=n_experts,
                    tp=split,
                    ep=over,
                    routing=routing,
                    dtype=dtype,
                    kernel=kernel,
                )

            found = np.minimum.reduce([layer_s(tokens, dtype) for dtype in formats])
            if over > 1 and model.top_k_groups and routing == ROUTING and model.n_experts % ep == 0:
                rows = most_loaded(model.n_experts, model.top_k, ROUTING_SKEW, ep, 0, tokens)[0]
                found = np.minimum(found, even_s(rows, 1, model.n_experts // ep, 1))
            asked = [layer_s(LARGE_STEP, dtype, kernel)[0] for dtype, kernel in _asked_kernels(system, formats) if over == ep]
            return np.maximum(found, tokens * min(asked) / LARGE_STEP[0]) if asked else found

        if apart:  # the fullest rank gets its own rows, each to one of its experts, and sees no others
            rows = most_loaded(model.n_experts, model.top_k, plan.expert_skew, ep, plan.redundant_experts, t_all)[0]
            return even_s(rows, 1, -(-(model.n_experts + plan.redundant_experts) // ep), 1)
        measured = uneven_s(model, plan, t_all, even_s)
        if system.engine.grouped_experts:
            return np.minimum(measured, _unmeasured_experts_s(model, plan, system, t_all, ep))
        return measured
    return _unmeasured_experts_s(model, plan, system, t_all, ep)


ROUTING = "power_law_1.01"
"""The measured routing nearest to what requests cause: 16 tokens touch 62 % of 128 experts at top 8, random routing 64 %; the measured
``balanced`` one deals pairs out in turn and touches them all, which doubles the price of a small decode batch."""
ROUTING_SKEW = 1.01
"""Its exponent. Expert parallel layers that choose groups first (DeepSeek) were measured with made-up scores that fall into the first ones:
16,384 tokens evenly dealt take the first of 8 H200 12.1 ms, where an eighth of each expert takes 4.6. They cost no more than the fullest
rank's rows under this skew on its experts alone."""
MEASURED_EXPERTS = {"int4": ("int4_wo",), "mxfp4": ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4"), "fp8": ("fp8", "fp8_block")}
"""Our weight formats -> the measured MoE formats that may price them, and the cheaper does: engines run the faster of their kernels. MXFP4
experts are multiplied by 8-bit activations on cards that can (TensorRT-LLM always, vLLM where asked). Scaled by blocks or as a whole, 8-bit
experts cost the same to read and multiply; the kernel measured for the latter on Hopper is 3 to 8 times slower than its bytes."""


def _measured_experts(plan: EnginePlan, system: ServeSystem) -> list[str]:
    """The measured formats of MoE layers that price this plan's experts; none if the card has none."""
    families = system.roofline.calibration.families
    known = MEASURED_EXPERTS.get(plan.experts_in, (plan.experts_in,))
    return [name for name in known if any(key.startswith(f"moe.{name}.") for key in families)]


LARGE_STEP = np.array([65536.0])
"""Tokens of the largest step measured."""


def _asked_kernels(system: ServeSystem, formats: list[str]) -> list[tuple[str, str]]:
    """(format, kernel) of the measured layers that a launch asks its engine for; none where it asks for none or none was measured.

    Small steps read weights, in which kernels hardly differ; large ones take what their kernel takes for each token of a large step.
    """
    asked, found = system.engine.expert_kernel, []
    for key in system.roofline.calibration.families if asked else ():
        kind, *parts = key.split(".")
        if kind == "moe" and len(parts) == 2 and parts[0] in formats and asked in parts[1]:
            found.append((parts[0], parts[1]))
    return found


def _unmeasured_experts_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t_all: Array, ep: int) -> Array:
    """Two grouped products over the touched experts of the most loaded rank and the sort around them; ``alike``: those of one token."""
    pairs, local = most_loaded(model.n_experts, model.top_k, plan.expert_skew, ep, plan.redundant_experts, t_all)
    if plan.alike:
        local = np.minimum(local, model.top_k)
        pairs = np.where(t_all > 0, t_all * min(model.top_k, model.n_experts // ep), pairs)
    width = model.moe_ffn_hidden * ep / (plan.tp * plan.dp)
    n_in = 2.0 if model.gated_mlp else 1.0
    first = grouped_gemm_s(system, pairs, local, n_in * width, float(model.hidden), plan.experts_in)
    second = grouped_gemm_s(system, pairs, local, float(model.hidden), width, plan.experts_in)
    return first + second + system.roofline.stream_s(2 * pairs * ((n_in + 1) * width + 3 * model.hidden))


def grouped_gemm_s(system: ServeSystem, pairs: Array, experts: Array, n: float, k: float, dtype: str) -> Array:
    """One product per busy expert; formats the card cannot multiply are weight-only (see ``gemm_s``)."""
    roofline = system.roofline
    try:
        system.accelerator.peak_flops_per_s(dtype)
        return roofline.grouped_gemm_s(pairs, experts, n, k, dtype)
    except (BadInput, UnknownName):
        c = roofline.calibration.fit("gemm.bf16").coefficients
        bandwidth = system.accelerator.hbm_bytes_per_s * c["memory_frac"]
        saved = (2.0 - weight_bytes(dtype)) * experts * n * k / bandwidth
        compute = 2 * pairs * n * k / (system.accelerator.peak_flops_per_s("bf16") * c["compute_frac"])
        return np.maximum(roofline.grouped_gemm_s(pairs, experts, n, k, "bf16") - saved, c["launch_s"] + compute)


def norms_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Two fused residual-and-norm passes (read two, write two), rotary embedding and the KV write."""
    heads = -(-model.n_heads // plan.tp) + 2 * -(-model.n_kv_heads // plan.tp)
    over, share = system.roofline.pass_s, 1 - model.n_linear_layers / model.n_layers
    return 2 * over(8 * t * model.hidden) + share * over(4 * t * heads * model.head_dim)


GATHER_RANKS = 8
"""Up to so many ranks engines gather tokens for the experts; over more, every rank would receive what few of its experts need."""
GATHERED_BYTES = {"nvfp4": 0.5625}
"""Bytes of an element that ranks gather for experts of 4 bits, which quantise first; other formats travel in 16 bits.
Source: TensorRT-LLM's fused MoE (post-quant allgather), vLLM's FlashInferAllGatherMoEPrepareAndFinalize."""
QUANTISED_FIRST = ("cutlass",)
"""Kernels for experts whose rows SGLang gathers in 4 bits, prompts too. Source: its ``should_use_flashinfer_cutlass_moe_fp4_allgather``."""


def by_all_to_all(plan: EnginePlan) -> bool:
    """Whether a rank is sent only the tokens of its own experts (DeepEP), rather than all ranks' tokens."""
    return plan.ep > 1 and (plan.all_to_all or plan.tp * plan.dp > GATHER_RANKS)


def messages_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array, moe: bool, prompts: bool = False) -> Array:
    """One layer's messages: an all-reduce after attention and after the FFN over tp; attention DP gathers tokens for the experts instead.

    Inside one node of up to GATHER_RANKS the experts' tokens are gathered, as GATHERED_BYTES, and their sums scattered; across nodes, and
    in larger domains of fast links, they go by all-to-all, one 8-bit copy per expert out and one 16-bit copy back. Across nodes the faster
    of two ways counts: a copy for each expert straight to its GPU (few tokens), or one for each node, which hands it on (many). Engines
    that sum prompts clear room for all ranks' rows, add each rank's to it by an all-reduce, and the experts' results by another.
    """
    net, row = system.network, 2.0 * model.hidden
    total = tp_all_reduce_s(system, t * row, plan.tp)
    if not moe or plan.dp == 1:
        return 2 * total
    n = plan.tp * plan.dp
    if n <= min(system.cluster.gpus_per_node, GATHER_RANKS) and not plan.all_to_all:
        asked = t * plan.dp * model.hidden
        if prompts and system.engine.sums_prompts and system.engine.expert_kernel not in QUANTISED_FIRST:
            return total + 2 * tp_all_reduce_s(system, 2.0 * asked, n) + system.roofline.stream_s(2.0 * asked)
        gathered = net.all_gather_s(GATHERED_BYTES.get(plan.experts_in, 2.0) * asked, n, 1)
        return total + gathered + net.reduce_scatter_s(2.0 * asked, n, 1)
    sent = t / plan.tp * model.top_k * model.hidden
    if n <= system.cluster.gpus_per_node:
        return total + net.all_to_all_s(sent, n, 1) + net.all_to_all_s(2 * sent, n, 1)
    node = system.cluster.gpus_per_node
    direct, once = sent * (n - node) / n, t / plan.tp * model.hidden * remote_nodes(model, n / node)
    relayed = _far_s(system, once) + net.all_to_all_s(sent, node, 1) + net.all_to_all_s(2 * sent, node, 1)
    return total + np.minimum(_far_s(system, direct), relayed)


def remote_nodes(model: ModelSpec, n_nodes: float) -> float:
    """Other nodes a token goes to: of those its experts lie on, ``N·(1 − (1 − 1/N)^k)`` and no more than its expert groups, all but 1/N.

    Source: DeepSeek-V3 report, section 3.2.2: a token is sent once to each of at most four nodes and forwarded there over NVLink.
    """
    hit = n_nodes * (1 - (1 - 1 / n_nodes) ** model.top_k)
    return min(hit, model.top_k_groups or hit) * (1 - 1 / n_nodes)


def _far_s(system: ServeSystem, out_bytes: Array) -> Array:
    """Rows to other nodes in 8 bits and back in 16. Every rank writes to all others at once: one latency, and its share of the adapters."""
    net, node = system.network, system.cluster.gpus_per_node
    return net.p2p_s(out_bytes, node) + net.p2p_s(2 * out_bytes, node)


def tp_all_reduce_s(system: ServeSystem, n_bytes: Array, tp: int) -> Array:
    """The cheaper of the library's all-reduce and, where it was measured, the engine's own kernel inside a CUDA graph."""
    net = system.network
    library = net.all_reduce_s(n_bytes, tp, 1)
    measured = "custom_allreduce.graph" in net.calibration.families
    if not measured or tp < 2 or tp > system.cluster.gpus_per_node or not net.intra.kind.startswith("nvlink"):
        return library
    return np.minimum(library, net.custom_all_reduce_s(n_bytes, tp))


def head_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, rows: Array) -> Array:
    """Logits of one row a sequence, their gather over tp, and a pass over them to sample."""
    r = np.ceil(rows / plan.dp)
    local = model.vocab / plan.tp
    gather = system.network.all_gather_s(2 * r * model.vocab, plan.tp, 1)
    return system.roofline.gemm_s(r, local, model.hidden) + gather + system.roofline.stream_s(2 * 4 * r * model.vocab)
