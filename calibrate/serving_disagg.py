"""Disaggregated rows of measured points: which launch a row is a run of, and its pools as the suite started them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..scenarios import registry
from ..scenarios.serving import EnginePlan, serving_engine
from .launches import Launch, Workers, distinct, launches
from .serving_formats import Unusable
from .serving_recipes import NOMINAL, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The prefill side of a measured deployment, and how many decode replicas stand beside it.

    ``recipe`` is the prefill workers'. ``rate_per_s``: clients send no faster than this, together (0: at once), ``rounds`` requests each. A
    decode worker hands on a sequence's tokens every ``stream_steps`` steps, and only then has the host work of one; with
    ``decode_first`` it looks for requests every ``poll_steps`` steps, see ``Deployment``.
    """

    prefill: EnginePlan
    n_prefill: int
    n_decode: int
    recipe: Recipe
    rate_per_s: int = 0
    rounds: int = 10
    stream_steps: int = 1
    poll_steps: int = 1
    decode_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a row says of its deployment. ``prefill`` and ``decode`` are (workers, tp, dp, ep), 0 workers where it does not say;
    ``n_gpus`` are those of both pools together, 0 where it does not say.
    """

    engine: str
    model: str
    gpu: str
    four_bit: bool
    isl: int
    osl: int
    clients: int
    day: str
    prefill: tuple[int, int, int, int]
    decode: tuple[int, int, int, int]
    n_gpus: int = 0

    @property
    def has_workers(self) -> bool:
        return self.prefill[0] > 0 and self.decode[0] > 0


def launched(asked: Asked) -> Launch:
    """The launch a row is a run of. Unusable where none, several, or one that speculates may be meant.

    Rows with worker counts come from a table that leaves speculation out (of 111 runs that stand in both tables, none is a launch that
    speculates); where no launch is recorded, their own columns are the layout. Others are matched by load, day and GPUs.
    """
    if not asked.clients:
        raise Unusable("concurrency is not given")
    known = [
        one
        for one in launches(asked.engine, asked.model, asked.gpu, 4 if asked.four_bit else 8)
        if (one.isl, one.osl) == (asked.isl, asked.osl) and asked.clients in one.clients and one.in_force(asked.day) and _like(asked, one)
    ]
    found = list(distinct(known, asked.day))
    if asked.has_workers:
        plain = [one for one in found if not one.speculates]
        exact = [one for one in plain if (one.prefill.layout, one.decode.layout) == (asked.prefill, asked.decode)]
        return (exact or plain or [_as_stated(asked)])[0]
    if not found:
        raise Unusable("disaggregated, without worker counts, and no launch of that load and day is recorded")
    if all(one.speculates for one in found):
        raise Unusable("speculative decoding with an unpublished acceptance rate (the launch of that load and day runs MTP)")
    if any(one.speculates for one in found):
        raise Unusable("disaggregated, without worker counts: launches with and without speculation had that load and day")
    if len(found) > 1:
        raise Unusable(f"disaggregated, without worker counts: {len(found)} launches had that load and day")
    return found[0]


def _like(asked: Asked, one: Launch) -> bool:
    """Whether a launch has the workers and GPUs that a row states."""
    prefill, decode = asked.prefill[1] * asked.prefill[2], asked.decode[1] * asked.decode[2]
    if asked.has_workers:
        return (one.prefill.n, one.decode.n, one.prefill.gpus_each, one.decode.gpus_each) == (*_counts(asked), prefill, decode)
    if asked.n_gpus:
        return one.n_gpus == asked.n_gpus
    return prefill == decode == 1 or (one.prefill.gpus_each, one.decode.gpus_each) == (prefill, decode)


def _counts(asked: Asked) -> tuple[int, int]:
    return asked.prefill[0], asked.decode[0]


def _as_stated(asked: Asked) -> Launch:
    """The row's own columns as a launch that sets no limits."""
    sides = [Workers(n=n, tp=tp, dp=dp, ep=ep, kv_dtype="") for n, tp, dp, ep in (asked.prefill, asked.decode)]
    return Launch(
        isl=asked.isl,
        osl=asked.osl,
        clients=(asked.clients,),
        prefill=sides[0],
        decode=sides[1],
        speculates=False,
        rate_per_s=0,
        since=asked.day,
        until=asked.day,
    )


SUITE_MODELS = {"deepseek-v3": "deepseek-r1"}
"""What a table calls a disaggregated run of InferenceX -> what the suite ran."""
LOST_TP = 8
"""Rows of December 2025 without a version give both pools the deployment's whole number of GPUs as tp, more than any worker has."""


def aic_asked(row: Mapping[str, Any], model: str, twin: Mapping[str, Any]) -> Asked:
    """What a kernel-tool row says, or its ``twin`` where that is the same run with worker counts."""
    prefill, decode = (_side(twin, side) for side in ("prefill", "decode"))
    whole = not prefill[0] and not isinstance(twin.get("framework_version"), str) and prefill[1] == decode[1] > LOST_TP
    known = row.get("measured_date")
    return Asked(
        engine=str(row["framework"]),
        model=SUITE_MODELS.get(model, model),
        gpu=registry.accelerator(str(row["gpu"])).name,
        four_bit=str(row.get("precision")) == "fp4",
        isl=_int(row, "isl"),
        osl=_int(row, "osl"),
        clients=_int(row, "concurrency"),
        day=known[:10] if isinstance(known, str) else "",
        prefill=prefill,
        decode=decode,
        n_gpus=prefill[1] if whole else 0,
    )


def _side(row: Mapping[str, Any], side: str) -> tuple[int, int, int, int]:
    n, tp, dp, ep = (_int(row, f"{side}_{name}") for name in ("num_workers", "tp_size", "attention_dp_size", "moe_ep_size"))
    return n, max(tp, 1), max(dp, 1), max(ep, 1)


def _int(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    return 0 if value is None or not isinstance(value, (int, float)) or math.isnan(value) else int(value)


def same_runs(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[float, float], Mapping[str, Any]]:
    """(TTFT, TPOT) -> the row with worker counts that measured them: tables of one suite overlap, and only one of them has the counts."""
    return {(row["ttft_ms"], row["tpot_ms"]): row for row in rows if _int(row, "prefill_num_workers")}


NOTED = re.compile(r"prefill (\d+)x\(tp(\d+) pp1 dp(\d+) ep(\d+) bs\d+\), decode (\d+) workers")


PAIRS = re.compile(r"\b(\d+)P(\d+)D\b")
LONE_ANSWER_TOKENS = 16
"""Answer of a lone request whose time to first token alone is published, which does not depend on it."""


def truth_asked(row: Mapping[str, Any], model: str, engine: str) -> Asked:
    """What a truth row says: its columns are a decode worker's, its notes hold the rest. Unusable where they do not.

    ``1P1D`` in the notes: workers whose tensor parallelism is their GPUs, under one client where no load is given.
    """
    notes = str(row.get("notes"))
    pair = PAIRS.search(notes)
    if pair and engine and _int(row, "prefill_gpus") and _int(row, "decode_gpus"):
        counts = int(pair[1]), int(pair[2])
        prefill, decode = ((n, _int(row, f"{side}_gpus") // n, 1, 1) for n, side in zip(counts, ("prefill", "decode"), strict=True))
        return Asked(
            engine=engine,
            model=model,
            gpu=registry.accelerator(str(row["gpu"])).name,
            four_bit=False,
            isl=_int(row, "isl"),
            osl=_int(row, "osl") or LONE_ANSWER_TOKENS,
            clients=_int(row, "concurrency") or 1,
            day="",
            prefill=prefill,
            decode=decode,
        )
    match, dated = NOTED.search(notes), re.search(r"measured=(\d{4}-\d{2}-\d{2})", notes)
    if not match or not dated or not engine:
        raise Unusable("disaggregated rows do not say how many workers there were")
    n, tp, dp, ep, n_decode = (int(v) for v in match.groups())
    return Asked(
        engine=engine,
        model=SUITE_MODELS.get(model, model),
        gpu=registry.accelerator(str(row["gpu"])).name,
        four_bit=str(row.get("precision")) == "fp4",
        isl=_int(row, "isl"),
        osl=_int(row, "osl"),
        clients=_int(row, "concurrency"),
        day=dated[1],
        prefill=(n, tp, dp, ep),
        decode=(n_decode, max(_int(row, "tp"), 1), max(_int(row, "dp_attention"), 1), max(_int(row, "ep"), 1)),
    )


def pools(one: Launch, clients: int, engine: str, dtype: str, experts: str, kv_dtype: str) -> tuple[EnginePlan, Recipe, Split]:
    """The decode plan, its recipe, and the prefill side, as a launch started them.

    Decode workers take a request whose KV has come into the next decode step,
    and capture CUDA graphs up to their seats where a launch does not say otherwise.
    ``kv_dtype`` is the cache's format where the launch does not set it.
    """
    family, profile = engine.partition("-")[0], serving_engine(engine)
    low_frac = 0.8 if (one.isl, one.osl) in NOMINAL else 1.0
    plans = []
    for side, is_decode in ((one.prefill, False), (one.decode, True)):
        seats, budget = (profile.of_all_ranks(side.limits.get(name, 0), side.dp) for name in ("seats", "tokens"))
        seats = min(seats or clients, max(clients, side.dp))
        if is_decode:
            budget = max(2 * seats, DECODE_TOKENS)
        copies = side.limits.get("copies", 0)
        plans.append(
            EnginePlan(
                tp=side.tp,
                dp=side.dp,
                ep=side.ep,
                weight_dtype=dtype,
                expert_dtype=experts,
                kv_dtype=(kv_dtype if not side.kv_dtype else side.kv_dtype),
                engine=engine,
                policy=DECODE_POLICY.get(family, "") if is_decode else "",
                max_num_seqs=seats,
                token_budget=budget,
                redundant_experts=copies,
                all_to_all="a2a" in side.limits,
                kv_blocks=side.limits.get("pool", 0) * side.dp,
            )
        )
    prefill, decode = plans
    recipes = [
        Recipe(
            memory_utilization_frac=side.limits.get("memory", 0) / 100,
            largest_graph=side.limits.get("graph", 0) or -(-plan.max_num_seqs // plan.dp),
            lengths_low_frac=low_frac,
            expert_kernel=side.experts,
            few_token_products=side.products == "trtllm",
        )
        for side, plan in ((one.prefill, prefill), (one.decode, decode))
    ]
    split = Split(
        prefill=prefill,
        n_prefill=one.prefill.n,
        n_decode=one.decode.n,
        recipe=recipes[0],
        rate_per_s=one.rate_per_s,
        rounds=one.rounds,
        poll_steps=one.decode.limits.get("poll", 1),
        decode_first=family in DECODE_FIRST,
        stream_steps=one.decode.limits.get("stream", 1),
    )
    return decode, recipes[1], split


DECODE_TOKENS = 8192
"""Budget of a decode worker's step, which a request whose prompt has to be computed again would take."""
DECODE_POLICY = {"sglang": "orca"}
"""Decode workers of SGLang set KV aside for what a request will still answer before they take it, and let it join the running batch."""
DECODE_FIRST = ("sglang",)
"""Engines whose prefill workers start a prompt once a decode worker has set room aside for it."""
