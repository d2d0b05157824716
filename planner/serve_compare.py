"""What the search leaves out, held against its winner on request: semi-PD, attention apart from FFN, routers, autoscaling."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from ..costmodels.serving_ops import serve_system
from ..costmodels.split_choice import choose_split
from ..costmodels.step_times import PS, StepTimes
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan, serving_engine
from ..scenarios.serving_parts import Autoscale
from ..scenarios.units import show_number
from ..sim.deployment import simulate_deployment
from ..sim.replica_kind import ReplicaModel
from ..sim.semi_pd import split_kinds
from ..sim.serving_metrics import attained
from . import serve_space as space
from .serve_ask import ServeAsk, own_rate_per_s
from .serve_bound import ATTAIN_FRAC
from .serve_judge import Seen, judge
from .serve_kinds import Candidate, Kind
from .serve_play import FIRST_JUMP, Player
from .serve_rates import RATE_STEP, highest, level_from, rate
from .serve_search import ServeChoice, ServeDecision

SM_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the SMs that prefill may have."""
ROUTERS = ("round-robin", "least-outstanding", "kv-aware", "cache-aware")
SAMPLED, LEAST_FRAC, MOST_STEPS = 500, 0.7, 600
MOST_LAYOUTS, MOST_SPLIT_NODES, MOST_REQUESTS, MOST_ARRIVALS = 3, 4, 6000, 20_000
TARGETS = (0.4, 0.6, 0.8, 1.0)
"""Requests outstanding at which a replica is full, as parts of those under way at its goodput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One technique: what it gains over the plan (requests/s or tokens/s a GPU, or GPU-hours saved), whether a released engine does it."""

    name: str
    gain_frac: float
    deployable: bool
    sentence: str


def read_names(text: str) -> tuple[str, ...]:
    """``semi-pd,router`` -> its names; BadInput for one that is not known."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise BadInput(f"--compare {unknown[0][:40]!r} is not known; legal: {', '.join(WAYS)}")
    return names


def compare(ask: ServeAsk, decision: ServeDecision, names: tuple[str, ...]) -> list[Compared]:
    """The named techniques against the first choice; one that does not apply to the question says why."""
    found = []
    for name in names if decision.choices else ():
        try:
            found.append(WAYS[name](ask, decision, decision.choices[0]))
        except BadInput as error:
            found.append(Compared(name=name, gain_frac=0.0, deployable=False, sentence=f"{name} is left out: {error}"))
    return found


def semi_pd(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice) -> Compared:
    """Prefill and decode engines on shares of the same SMs: the best share of the layouts shown, per GPU, on the search's arrivals."""
    if ask.objective == "latency" or ask.concurrency:
        raise BadInput("it compares what is carried; drop --concurrency and --objective latency")
    layouts = _plain_layouts(ask, decision)
    if not layouts:
        raise BadInput("it splits replicas without pipelines, speculation and prefix caches, and no such one is shown")
    best, what = 0.0, ""
    per_gpu = winner.first_draw_per_s / winner.n_gpus
    for plan, kind in layouts:
        for share in SM_SHARES:
            try:
                sides = split_kinds(ask.model, plan, decision.system, ask.requests(SAMPLED), share)
            except BadInput:  # no room for both
                continue
            seen = _split_gpus(ask, decision, kind, Deployment(plan=plan, prefill_sm_frac=share), sides)
            found = _edge(seen, max(best * RATE_STEP, LEAST_FRAC * per_gpu) * plan.n_gpus) / plan.n_gpus
            if found > best:
                best, what = found, f"{space.describe(plan)}, {share:.0%} of the SMs for prompts"
    if not best:
        text = f"with semi-PD: less than {LEAST_FRAC:.0%} of the requests/s a GPU; research only"
        return Compared(name="semi-pd", gain_frac=LEAST_FRAC - 1, deployable=False, sentence=text)
    gain = best / per_gpu - 1
    return Compared(
        name="semi-pd", gain_frac=gain, deployable=False,
        sentence=f"with semi-PD ({what}): {gain:+.1%} requests/s a GPU; research only",
    )  # fmt: skip


def _split_gpus(
    ask: ServeAsk, decision: ServeDecision, kind: Kind, deployment: Deployment, sides: tuple[ReplicaModel, ReplicaModel]
) -> Callable[[float], Seen]:
    """What the requests of one pair of engines see at a rate."""
    player, candidate = Player(ask, decision.system), Candidate(serve=kind, bound_per_s=0.0)
    inside = deployment.n_gpus <= ask.cluster.gpus_per_node < ask.cluster.n_gpus
    cluster = ask.cluster.with_gpus(deployment.n_gpus) if inside else ask.cluster
    kinds = dict(zip(("prefill", "decode"), sides, strict=True))

    def seen(rate_per_s: float) -> Seen:
        work = ask.at_rate(ask.requests(player.n_requests(candidate, rate_per_s)), rate_per_s)
        return judge(ask, simulate_deployment(ask.model, cluster, deployment, work, engine=decision.system.engine, kinds=kinds), rate_per_s)

    return seen


def _plain_layouts(ask: ServeAsk, decision: ServeDecision) -> list[tuple[EnginePlan, Kind]]:
    """Layouts of the choices that semi-PD could split, with a prefill budget."""
    found: dict[str, tuple[EnginePlan, Kind]] = {}
    for choice in decision.choices:
        for part in choice.parts:
            candidate = part.played.candidate
            for kind in (candidate.serve, candidate.prefill):
                if kind is None or kind.plan.pp > 1 or kind.plan.speculation or kind.plan.prefix_cache:
                    continue
                plan = replace(kind.plan, token_budget=space.prefill_budget(ask, kind.plan.dp), max_num_seqs=space.SEATS * kind.plan.dp)
                found.setdefault(space.describe(plan), (plan, kind))
    return list(found.values())[:MOST_LAYOUTS]


def _edge(seen: Callable[[float], Seen], at_least: float) -> float:
    """The highest rate carried on the grid, from ``at_least`` on; 0 if that is not."""
    first = level_from(at_least)
    found = highest(lambda at: seen(rate(at)).failed, first, first - 1, first + MOST_STEPS, FIRST_JUMP)
    return rate(found) if found >= first else 0.0


def afd(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice) -> Compared:
    """Decoding with attention and FFN on nodes of their own, against the best decoding layout shown, in tokens/s a GPU.

    Both in closed form: steps of decodes alone at the mean context, the largest batch within the promise and the KV pool.
    """
    if math.isinf(ask.slo.tpot_s):
        raise BadInput("it compares tokens a second within a promised time per token; give --tpot")
    node = ask.cluster.gpus_per_node
    context = ask.prompt_tokens + ask.output_tokens // 2
    plain = max(_decoded_per_gpu(kind, context, ask.slo.tpot_s) for kind in _decoders(decision))
    few = ask.cluster.with_gpus(min(ask.cluster.n_gpus // node, MOST_SPLIT_NODES) * node) if ask.cluster.n_gpus > node else ask.cluster
    base = winner.plan
    plan = EnginePlan(
        tp=1, engine=ask.engine, weight_dtype=base.weight_dtype, expert_dtype=base.expert_dtype, kv_dtype=base.kv_dtype
    )  # fmt: skip
    split = choose_split(ask.model, plan, serve_system(few, serving_engine(ask.engine)), context, ask.slo.tpot_s)[0]
    gain = split.tokens_per_s_per_gpu / plain - 1 if plain else math.inf
    return Compared(
        name="afd", gain_frac=gain, deployable=False,
        sentence=f"with attention apart from FFN ({split.n_attention} + {split.n_ffn} nodes, {split.plan.ep} expert groups, "
        f"{split.batch:,} sequences): {gain:+.1%} tokens/s a GPU that decodes, {show_number(split.tokens_per_s_per_gpu, 4)} against "
        f"{show_number(plain, 4)}; prompts need GPUs of their own; research only",
    )  # fmt: skip


def _decoders(decision: ServeDecision) -> list[Kind]:
    return [part.played.candidate.serve for choice in decision.choices for part in choice.parts]


def _decoded_per_gpu(kind: Kind, context_tokens: int, tpot_s: float) -> float:
    """Tokens a second and GPU of the largest batch whose step of decodes alone keeps the promise; 0 for none, or for a pipeline."""
    times, limits = kind.model.times, kind.model.limits
    if not isinstance(times, StepTimes):
        return 0.0
    most = min(limits.max_seqs, limits.blocks * limits.block_tokens // context_tokens)

    def seconds(n: int) -> float:
        return times.step_ps(n, n * context_tokens, []) / PS

    n = bisect_right(range(1, most + 1), tpot_s, key=seconds)
    return n / seconds(n) / kind.plan.n_gpus if n else 0.0


def router(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice) -> Compared:
    """The best fleet of several replicas behind each router, at the highest rate it carries; against requests dealt in turn."""
    if ask.objective == "latency" or ask.concurrency:
        raise BadInput("it compares what is carried; drop --concurrency and --objective latency")
    several = [p for c in decision.choices for p in c.parts[:1] if (p.deployment.n_prefill or p.deployment.n_replicas) > 1]
    if not several:
        raise BadInput("it needs several replicas that take requests, and each plan shown has one")
    part = several[0]
    carried: dict[str, float] = {}
    candidate, own = part.played.candidate, part.copies * part.played.goodput_per_s
    for name in ROUTERS:
        if name == "cache-aware" and not part.deployment.prefill_plan.prefix_cache:
            continue
        deployment = replace(part.deployment, router=name)

        def seen(rate_per_s: float, deployment: Deployment = deployment) -> Seen:
            player = Player(ask, decision.system)
            n = min(part.copies * player.n_requests(candidate, rate_per_s / part.copies), MOST_REQUESTS)
            work = ask.at_rate(ask.requests(n), rate_per_s)
            kinds = candidate.kinds
            return judge(
                ask, simulate_deployment(ask.model, ask.cluster, deployment, work, engine=decision.system.engine, kinds=kinds), rate_per_s
            )

        carried[name] = _edge(seen, 0.6 * own)
    best, turn = max(carried, key=lambda name: carried[name]), carried["round-robin"]
    gain = carried[best] / turn - 1 if turn else 0.0
    others = ", ".join(f"{name} {show_number(rate, 4)}" for name, rate in carried.items())
    return Compared(
        name="router", gain_frac=gain, deployable=True,
        sentence=f"router {best}: {gain:+.1%} requests/s over round-robin (requests/s: {others})"
        if gain
        else f"no router carries more than round-robin (requests/s: {others})",
    )  # fmt: skip


def autoscale(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice) -> Compared:
    """The best layout of whole replicas as a pool that grows and shrinks with the trace, against the fewest fixed replicas that do.

    Both pay from the first arrival to the last answer. A new replica takes ``Autoscale.provision_s``.
    """
    if ask.trace is None or not ask.keep_arrivals:
        raise BadInput("it needs arrivals that rise and fall; give --trace, and no --rate")
    whole = [choice for choice in decision.choices if len(choice.parts) == 1 and not choice.n_prefill]
    if not whole:
        raise BadInput("it covers replicas that do both prefill and decode, and no such fleet is shown")
    part, work = whole[0].parts[0], ask.requests(MOST_ARRIVALS)
    candidate, each = part.played.candidate, part.played.candidate.n_gpus
    most, kinds = ask.cluster.n_gpus // each, part.played.candidate.kinds
    if most < 2:
        raise BadInput("it needs room for several replicas, and the best one fills the cluster; add GPUs")

    def paid(deployment: Deployment) -> tuple[float, float]:
        """(GPU-seconds, share of requests that keep the promises) behind a router that sends to the fewest outstanding."""
        result = simulate_deployment(
            ask.model, ask.cluster, replace(deployment, router="least-outstanding"), work, engine=decision.system.engine, kinds=kinds
        )
        return result.gpu_s, float(attained(result, ask.slo).mean())

    least = min(max(1, math.floor(own_rate_per_s(work) / part.played.goodput_per_s)), most)
    tries = ((n, *paid(candidate.deployment(n))) for n in range(least, most + 1))
    n, fixed_s, kept = next((row for row in tries if row[2] >= ATTAIN_FRAC), (0, 0.0, 0.0))
    if not n:
        raise BadInput(f"as the trace comes, {most} replicas do not keep the promises of 95 % of requests; add GPUs")
    under_way = part.played.goodput_per_s * (part.played.seen.e2e_s if part.played.seen else 1.0)
    found = []
    for target in sorted({max(1, round(frac * under_way)) for frac in TARGETS}):
        for low in sorted({1, -(-n // 2)}):
            spec = Autoscale(min_replicas=low, max_replicas=most, target_requests=target)
            gpu_s, kept = paid(replace(candidate.deployment(1), autoscale=spec))
            found.append((kept >= ATTAIN_FRAC, -gpu_s, kept, low, target))
    holds, cost_s, kept, low, target = max(found)
    hours = f"{show_number(fixed_s / 3600, 4)} GPU-hours of {n} fixed replicas ({space.describe(candidate.serve.plan)})"
    if not holds:
        late = f"a replica takes {Autoscale().provision_s:g} s to start"
        text = f"autoscaled, at most {max(row[2] for row in found):.0%} of requests see the promises kept: {late}; {hours} keep them"
        return Compared(name="autoscale", gain_frac=0.0, deployable=True, sentence=text)
    saved = 1 + cost_s / fixed_s
    return Compared(
        name="autoscale", gain_frac=saved, deployable=True,
        sentence=f"autoscaled from {low} to {most} replicas at {target} requests each: {show_number(-cost_s / 3600, 4)} GPU-hours against "
        f"{hours}, {saved:.1%} saved within the same promises",
    )  # fmt: skip


def as_rows(found: list[Compared]) -> list[dict[str, object]]:
    """For the JSON answer."""
    return [asdict(one) for one in found]


WAYS: dict[str, Callable[[ServeAsk, ServeDecision, ServeChoice], Compared]] = {
    "semi-pd": semi_pd, "afd": afd, "router": router, "autoscale": autoscale,
}  # fmt: skip
