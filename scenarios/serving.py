"""What is asked of a serving engine: the requests, and how the engine is laid out and scheduled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput
from .load import by_name
from .registry import find
from .serving_parts import AttentionFfnSplit, KvTier, Speculation

Ints64 = NDArray[np.int64]
Floats64 = NDArray[np.float64]
Preemption = Literal["recompute", "swap"]
MAX_REQUESTS = 20_000_000
MAX_TOKENS = 10**9
MAX_ARRIVAL_S = 3e8
WEIGHT_FORMATS = ("bf16", "fp16", "fp8", "fp8_block", "mxfp8", "int8", "nvfp4", "mxfp4", "fp4", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeWorkload:
    """Requests in order of arrival. Arrays of one length: seconds, prompt and output tokens, priority (lower runs first).

    ``block_ids[block_starts[i]:block_starts[i+1]]`` are the prefix-block hashes of request ``i``, of ``block_id_tokens`` tokens each
    (empty arrays: no prefix identity is known). Raises BadInput when lengths differ, a count is below 1 or arrivals go backwards.
    """

    arrival_s: Floats64
    prompt_tokens: Ints64
    output_tokens: Ints64
    priority: Ints64 = field(default_factory=lambda: np.zeros(0, np.int64))
    block_starts: Ints64 = field(default_factory=lambda: np.zeros(0, np.int64))
    block_ids: Ints64 = field(default_factory=lambda: np.zeros(0, np.int64))
    block_id_tokens: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if not n or n > MAX_REQUESTS:
            raise BadInput(f"{n:,} requests; a workload has 1 to {MAX_REQUESTS:,}")
        for name in ("prompt_tokens", "output_tokens"):
            column = getattr(self, name)
            if len(column) != n:
                raise BadInput(f"{name} has {len(column):,} values for {n:,} arrivals; give one each")
            if column.min() < 1 or column.max() > MAX_TOKENS:
                at = int(np.argmax((column < 1) | (column > MAX_TOKENS)))
                raise BadInput(f"{name} of request {at} is {column[at]}; legal: 1 to 1e9")
        if not np.all(np.isfinite(self.arrival_s)) or self.arrival_s[0] < 0 or self.arrival_s[-1] > MAX_ARRIVAL_S:
            raise BadInput(
                f"arrivals go from {self.arrival_s[0]:g} to {self.arrival_s[-1]:g} s; legal: from 0 to {MAX_ARRIVAL_S:,.0f} s; "
                "take fewer requests or another rate"
            )
        if np.any(np.diff(self.arrival_s) < 0):
            raise BadInput(f"arrival_s goes backwards at request {int(np.argmax(np.diff(self.arrival_s) < 0)) + 1}; sort by arrival")
        if len(self.priority) not in (0, n):
            raise BadInput(f"priority has {len(self.priority):,} values for {n:,} arrivals; give one each or none")
        if len(self.block_starts) not in (0, n + 1):
            raise BadInput(f"block_starts has {len(self.block_starts):,} values; give {n + 1:,} (one more than requests) or none")

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEngine:
    """Behaviour of one serving engine and version, read from ``scenarios/engines/<name>.toml``.

    ``step_cpu_s`` is host time per engine step that no GPU work hides (``ranks_cpu_s``: as much more over several GPUs),
    ``sequence_cpu_s`` the same per running sequence (sampling, detokenising), ``quantised_sequence_s`` what a decoded token costs more
    than the measured linears where these quantise its activations; ``request_cpu_s`` from arrival to the scheduler (HTTP); before that
    requests of measured points take ``frontend_cpu_s`` and, for each prompt token, ``token_cpu_s`` (random text) in turn. A step of at
    most ``max(graph_tokens)`` tokens pads up to the next of them and replays a CUDA graph; a larger one launches ``kernels_per_layer``
    kernels a layer at ``launch_s`` of host time each (``graphs_decode_only``: so does one with a prompt). ``context_bytes`` are CUDA
    context, graphs and workspace per GPU; ``memory_utilization_frac`` the part of HBM the engine may use (with ``memory_frac_of_free``:
    the part of what weights and activations leave that its KV cache may use). ``kernel_frac`` is this engine's kernel time over that of
    the measured kernels, ``prefill_attention_frac`` the same of a prompt's attention, ``kernel_gap_s`` what each kernel takes more than
    those; with ``older_products`` products of 16 bits take what they took in the libraries of 2024. Cards with at least
    ``large_hbm_bytes``, but for those named in ``small_cards``, start with ``large_token_budget`` and ``large_max_num_seqs`` (0: as all
    others). ``*_error_frac`` are the median errors of predictions on published serving points that no constant was fitted on.
    ``fused_quantisation``: norms and activations write 8 and 4 bits themselves. ``limits_of_all_ranks``: its flags for tokens and
    sequences are shared out over the attention data parallel ranks (else each rank has them). ``overlapped``: the host plans a step
    while the one before runs, so it sees what arrives one step later (measured points are replayed so; the simulator's other front ends
    leave it out). ``one_attention_call``: prompts and decodes of a step are one variable-length call where FlashAttention-2 runs.
    ``expert_kernel``: the kernel that multiplies experts where a launch asks for one ('': the measured one nearest to the shape).
    ``few_token_products``: block-scaled 8-bit products run on kernels made for few tokens, as a launch asked for.
    ``sums_prompts``: attention data parallel ranks bring prompts to the experts by all-reduces, where decodes are gathered.
    ``grouped_experts``: experts are multiplied by grouped products as fast as single ones, where those beat the measured MoE layers.
    ``per_head_elements``: key and value elements an SM takes per clock in a decode kernel that reads the cache for each query head (0:
    none does), in one thread block a head and sequence with ``unsplit_heads``; groups of ``shared_groups`` query heads have a kernel that
    reads once for all. ``fast_8bit_cache``: decode kernels read 8-bit caches as near to bandwidth as the measured ones read 16-bit
    caches. ``whole_embedding``: the input embedding is not split over tensor parallel ranks. ``stages_in_turn``: pipeline stages do not
    overlap, and ``max_num_seqs`` is each micro-batch's.
    ``sources`` says where each comes from.
    """

    name: str
    step_cpu_s: float
    sequence_cpu_s: float
    request_cpu_s: float
    launch_s: float
    memory_utilization_frac: float
    context_bytes: float
    max_num_seqs: int
    token_budget: int
    policy: str = "vllm-v1"
    block_tokens: int = 16
    graph_tokens: tuple[int, ...] = ()
    kernels_per_layer: int = 12
    kernel_frac: float = 1.0
    prefill_attention_frac: float = 1.0
    frontend_cpu_s: float = 0.0
    token_cpu_s: float = 0.0
    large_hbm_bytes: float = 0.0
    large_token_budget: int = 0
    large_max_num_seqs: int = 0
    small_cards: tuple[str, ...] = ()
    memory_frac_of_free: bool = False
    graphs_decode_only: bool = False
    fused_quantisation: bool = False
    limits_of_all_ranks: bool = False
    overlapped: bool = False
    one_attention_call: bool = False
    grouped_experts: bool = False
    few_token_products: bool = False
    sums_prompts: bool = False
    expert_kernel: str = ""
    whole_embedding: bool = False
    stages_in_turn: bool = False
    kernel_gap_s: float = 0.0
    older_products: bool = False
    per_head_elements: float = 0.0
    unsplit_heads: bool = False
    shared_groups: tuple[int, ...] = ()
    fast_8bit_cache: bool = False
    ranks_cpu_s: float = 0.0
    quantised_sequence_s: float = 0.0
    throughput_error_frac: float = 0.08
    ttft_error_frac: float = 0.17
    tpot_error_frac: float = 0.08
    aliases: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def limits_on(self, card: str, hbm_bytes: float, dp: int = 1) -> tuple[int, int]:
        """(token budget, sequences) of a step of all ``dp`` ranks that the engine starts with on a card."""
        budget, seats = self.token_budget, self.max_num_seqs
        if self.large_hbm_bytes and hbm_bytes >= self.large_hbm_bytes and not card.startswith(self.small_cards):
            budget, seats = self.large_token_budget or budget, self.large_max_num_seqs or seats
        return self.of_all_ranks(budget, dp), self.of_all_ranks(seats, dp)

    def of_all_ranks(self, limit: int, dp: int) -> int:
        """A limit as the engine's flag has it -> that of all ``dp`` attention ranks together, as ``EnginePlan`` has it."""
        return limit if self.limits_of_all_ranks else limit * dp


def serving_engine(name: str) -> ServingEngine:
    """A serving engine by name or alias (``vllm``, ``sglang``, ``trtllm``); raises UnknownName."""
    return by_name(ServingEngine, "engines", find("engines", name) or name, "serving engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How one replica runs: ``tp * pp * dp * cp`` GPUs, number formats, scheduling policy and limits. 0 means: as the engine ships.

    ``dp`` is data parallelism of attention inside one replica, ``ep`` how many of its GPUs share the routed experts (1: experts are
    split by tp instead). ``expert_dtype`` is the routed experts' format where it differs from the other weights'. ``token_budget`` is
    the most tokens one step may carry (vLLM's max_num_batched_tokens, Sarathi's chunk), ``max_num_seqs`` the most sequences, both over all
    ``dp`` ranks together.
    ``cp`` ranks share every prompt's tokens and hold the KV cache in equal parts. ``expert_skew`` is the Zipf exponent of how often
    experts are chosen, ``redundant_experts`` the extra copies that even their load out (EPLB). ``kv_tiers`` catch prompt blocks that leave
    HBM, fastest first; ``attention_ffn`` puts the FFN on GPUs besides these, which then hold attention alone.
    ``state_dtype`` is the format of recurrent states (fp32 or bf16). ``all_to_all``: tokens go to their experts one by one even where the
    ranks are few enough to gather them (DeepEP). ``alike``: every sequence is a copy of one, and so chooses the same experts.
    ``kv_blocks = 0`` derives the pool from memory. Raises BadInput when a limit cannot work.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    weight_dtype: str = "bf16"
    expert_dtype: str = ""
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    engine: str = "vllm"
    policy: str = ""
    max_num_seqs: int = 0
    token_budget: int = 0
    block_tokens: int = 0
    kv_blocks: int = 0
    preemption: Preemption = "recompute"
    prefix_cache: bool = False
    cp: int = 1
    expert_skew: float = 0.0
    redundant_experts: int = 0
    all_to_all: bool = False
    alike: bool = False
    speculation: Speculation | None = None
    kv_tiers: tuple[KvTier, ...] = ()
    attention_ffn: AttentionFfnSplit | None = None

    def __post_init__(self) -> None:
        limits = {"tp": 1024, "pp": 256, "dp": 1024, "ep": 4096, "cp": 1024}
        limits |= {"redundant_experts": 4096, "max_num_seqs": 10**6, "token_budget": 10**8, "block_tokens": 4096, "kv_blocks": 10**10}
        for name, high in limits.items():
            low = 1 if name in ("tp", "pp", "dp", "ep", "cp") else 0
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"{name}={getattr(self, name)} must be between {low} and {high:,}")
        if self.preemption not in ("recompute", "swap"):
            raise BadInput(f"preemption={self.preemption!r} is not known; legal: recompute, swap")
        for name, value in (("weight_dtype", self.weight_dtype), ("expert_dtype", self.expert_dtype or self.weight_dtype)):
            if value not in WEIGHT_FORMATS:
                raise BadInput(f"{name}={value[:40]!r} is not known; legal: {', '.join(WEIGHT_FORMATS)}")
        if not 0 <= self.expert_skew <= 4:
            raise BadInput(f"expert_skew={self.expert_skew:g} must be from 0 to 4 (Zipf exponent)")
        if self.kv_tiers and not self.prefix_cache:
            raise BadInput("KV tiers keep prompt blocks for reuse: turn the prefix cache on, or drop the tiers")
        n_ffn = self.attention_ffn.n_ffn_gpus if self.attention_ffn else 0
        if self.ep > 1 and (n_ffn or self.n_gpus) % self.ep:
            raise BadInput(f"ep={self.ep} does not divide the " + (f"{n_ffn} FFN GPUs" if n_ffn else f"replica's {self.n_gpus} GPUs"))

    @property
    def n_gpus(self) -> int:
        return self.tp * self.pp * self.dp * self.cp + (self.attention_ffn.n_ffn_gpus if self.attention_ffn else 0)

    @property
    def experts_in(self) -> str:
        """Format of the routed experts."""
        return self.expert_dtype or self.weight_dtype
