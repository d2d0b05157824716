"""The question of ``plan --task serve``: a model, a cluster, the requests and what is promised to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import Floats64, Ints64, ServeWorkload
from ..scenarios.serving_parts import Speculation
from ..sim.arrivals import poisson
from ..sim.serve_flags import check_draft
from ..sim.serving_metrics import Slo

OBJECTIVES = ("throughput", "cost", "latency")
ROPE_KINDS = ("yarn",)
"""Ways of stretching that the emitted commands can ask for."""
MAX_ROPE_FACTOR = 256
LONG_TOKENS = 32_768
"""Contexts from this length on are also tried with context parallelism and wider steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Rotary positions stretched by ``factor`` (by ``yarn``), so that a model takes longer contexts. BadInput."""

    kind: str
    factor: float

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise BadInput(f"--rope-scaling {self.kind!r} is not known; legal: {', '.join(ROPE_KINDS)}, like yarn:4")
        if not 1 < self.factor <= MAX_ROPE_FACTOR:
            raise BadInput(
                f"--rope-scaling {self.kind}:{self.factor:g}: the factor must be over 1 and at most {MAX_ROPE_FACTOR}, like yarn:4"
            )


def read_rope_scaling(text: str) -> RopeScaling:
    """``yarn:4`` -> RopeScaling; BadInput otherwise."""
    kind, _, factor = text.partition(":")
    try:
        return RopeScaling(kind=kind, factor=float(factor))
    except ValueError:
        raise BadInput(f"--rope-scaling {text[:40]!r} is not KIND:FACTOR; write yarn:4") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeAsk:
    """What to serve: requests of these lengths (or of ``trace``), under these promises, on at most the GPUs of this cluster.

    ``rate_per_s`` (0: none) must be carried; ``concurrency`` (0: open loop) clients each send their next request when the last ends.
    ``prompt_tokens`` and ``output_tokens`` are the trace's means where there is one. Raises BadInput when the context is too long.
    """

    model: ModelSpec
    gpu: Accelerator
    cluster: Cluster
    prompt_tokens: int
    output_tokens: int
    slo: Slo
    objective: str = "throughput"
    rate_per_s: float = 0.0
    concurrency: int = 0
    trace: ServeWorkload | None = None
    keep_arrivals: bool = False
    allow_quant: bool = False
    engine: str = "vllm"
    speculation: Speculation | None = None
    rope: RopeScaling | None = None
    expert_skew: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)} must be at least 1")
        if self.objective not in OBJECTIVES:
            raise BadInput(f"objective={self.objective!r} is not for --task serve; legal: {', '.join(OBJECTIVES)}")
        if self.concurrency < 0 or self.rate_per_s < 0:
            raise BadInput(f"rate={self.rate_per_s:g}, concurrency={self.concurrency}: neither may be negative")
        if self.concurrency and self.rate_per_s:
            raise BadInput("--rate and --concurrency both say how requests arrive; give one of them")
        if self.rope and self.model.position != "rope":
            raise BadInput(f"--rope-scaling: {self.model.name} has {self.model.position} positions, not rotary ones; drop it")
        if self.expert_skew and not self.model.n_experts:
            raise BadInput(f"--expert-skew is for models with experts, and {self.model.name} has none; drop it")
        if self.speculation:
            check_draft(self.speculation, self.model)
        _check_context(self)

    @property
    def context_limit_tokens(self) -> int:
        """The longest context the model takes, stretched where that was asked for."""
        return int(self.model.max_seq_tokens * (self.rope.factor if self.rope else 1))

    @property
    def context_tokens(self) -> int:
        """The longest context any request needs."""
        if self.trace is None:
            return self.prompt_tokens + self.output_tokens
        return int((self.trace.prompt_tokens + self.trace.output_tokens).max())

    @property
    def long_prompts(self) -> bool:
        return self.context_tokens >= LONG_TOKENS

    @property
    def hashed(self) -> bool:
        """Whether prompt blocks are named, so that a prefix cache can find them again."""
        return self.trace is not None and len(self.trace.block_starts) > 0

    def requests(self, n: int, every: int = 1) -> ServeWorkload:
        """``n`` equal requests at time 0, or each ``every``-th of the trace (at most ``n`` of them), as it is."""
        if self.trace is None:
            ones = np.ones(n, np.int64)
            return ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=self.prompt_tokens * ones, output_tokens=self.output_tokens * ones)
        return pick(self.trace, np.arange(len(self.trace))[::every][:n])

    def at_rate(self, work: ServeWorkload, rate_per_s: float, draw: int = 0) -> ServeWorkload:
        """The same requests at this mean rate: a draw of a Poisson process, or the trace's own gaps, longer or shorter (``keep_arrivals``).

        Requests that come at once have no gaps: they come as Poisson.
        """
        if not self.keep_arrivals or work.arrival_s[-1] <= work.arrival_s[0]:
            return dataclasses.replace(work, arrival_s=poisson(len(work), rate_per_s, draw))
        at: Floats64 = work.arrival_s - work.arrival_s[0]
        return dataclasses.replace(work, arrival_s=at * (own_rate_per_s(work) / rate_per_s))


def own_rate_per_s(work: ServeWorkload) -> float:
    """Requests a second of a trace: ``(n - 1) / (last - first)``; BadInput when they all arrive at once."""
    span = float(work.arrival_s[-1] - work.arrival_s[0])
    if len(work) < 2 or span <= 0:
        raise BadInput("all requests of the trace arrive at once, so it has no rate of its own; give --rate")
    return (len(work) - 1) / span


def pick(work: ServeWorkload, index: Ints64) -> ServeWorkload:
    """The requests at ``index`` (rising), with their priorities and block hashes."""
    starts, ids = work.block_starts, work.block_ids
    if len(starts):
        sizes = np.diff(starts)[index]
        new = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        ids = ids[np.repeat(starts[:-1][index] - new[:-1], sizes) + np.arange(new[-1])]
        starts = new
    return dataclasses.replace(
        work, arrival_s=work.arrival_s[index], prompt_tokens=work.prompt_tokens[index], output_tokens=work.output_tokens[index],
        priority=work.priority[index] if len(work.priority) else work.priority, block_starts=starts, block_ids=ids,
    )  # fmt: skip


def _check_context(ask: ServeAsk) -> None:
    need, limit = ask.context_tokens, ask.context_limit_tokens
    if need <= limit:
        return
    what = f"isl + osl = {need:,} tokens" if ask.trace is None else f"the longest request of the trace, {need:,} tokens,"
    factor = -(-need // ask.model.max_seq_tokens)
    if ask.rope:
        raise BadInput(
            f"{what} is over the {limit:,} of {ask.model.name} with --rope-scaling {ask.rope.kind}:{ask.rope.factor:g}; "
            + (f"raise the factor to {factor} or shorten them" if factor <= MAX_ROPE_FACTOR else "shorten them")
        )
    cure = "shorten them or choose a model with a longer context"
    if ask.model.position == "rope" and factor <= MAX_ROPE_FACTOR:
        cure = f"shorten them, choose a model with a longer context, or stretch its positions with --rope-scaling yarn:{factor}"
    raise BadInput(f"{what} is over the {limit:,} that {ask.model.name} was made for; {cure}")
