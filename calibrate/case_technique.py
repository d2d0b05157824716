"""Predictors of published techniques: a pass of the layout's model, rewritten by the rows a case names, priced by one quantity.

``[words]``: ``pass`` (prefill, decode, train), ``techniques`` and ``baseline`` (names of rows, space-separated; none: the plain pass),
``quantity`` (a key of QUANTITIES), ``rates = "floor"`` to price at the datasheet. ``[numbers]``: ``tokens`` of context, ``n_seqs`` (0: as
many as fit), what overrides a row's parameter (the paper's setting of that row), fractions of the datasheet (``linear_frac`` …) where
the case does not take the calibration's, and fields of Rates where the paper computes with its own (``hop_s = 0``). A key after ``base_``
holds for the baseline only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from ..costmodels.apply import apply, parameters
from ..costmodels.attention_ffn import split_usd, token_work
from ..costmodels.op import Floats
from ..costmodels.rates import rates
from ..costmodels.step import Rates, Step, decode_step, prefill_step, seconds, seqs_that_fit, tokens_per_s, train_pass
from ..scenarios import registry
from ..scenarios.errors import BadInput, UnknownName
from ..scenarios.reference import Case
from ..scenarios.technique import technique
from .case_setting import model_of, scalar

UNITS = {
    "": 1.0, "x": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0, "tok/s": 1.0, "seqs": 1.0, "tokens": 1.0, "B": 1e9,
    "bytes": 1.0, "KB": 1e3, "KiB": 2.0**10, "GB": 1e9, "GiB": 2.0**30, "TB": 1e12, "TFLOP": 1e12, "PFLOP": 1e15,
}  # fmt: skip
"""Unit of a case -> its size in SI."""

QUANTITIES: dict[str, Callable[[Step, Rates], Floats]] = {
    "seconds": seconds,
    "tokens_per_s": tokens_per_s,
    "tokens_per_s_of_cache": lambda s, r: s.n_seqs * s.yield_tokens * r.hbm_bytes_per_s / s.kv_bytes,
    "seqs_that_fit": seqs_that_fit,
    "held": lambda s, r: s.held_bytes,
    "held_weights": lambda s, r: s.held_weight_bytes,
    "held_cache": lambda s, r: s.held_kv_bytes,
    "held_states": lambda s, r: s.held_state_bytes,
    "held_activations": lambda s, r: s.held_activation_bytes,
    "host_held": lambda s, r: s.host_held_bytes,
    "cache_per_token": lambda s, r: s.held_kv_bytes / (s.n_seqs * s.kv_tokens),
    "cache_elements": lambda s, r: s.held_kv_bytes / (2.0 * s.n_seqs * s.kv_tokens),
    "cache_read": lambda s, r: s.kv_bytes,
    "weights_read": lambda s, r: s.weight_bytes,
    "messages": lambda s, r: s.network_bytes,
    "message_seconds": lambda s, r: s.network_bytes / r.network_bytes_per_s + s.n_hops * r.hop_s,
    "seconds_per_hop": lambda s, r: s.network_bytes / s.n_hops / r.network_bytes_per_s + r.hop_s,
    "flops": lambda s, r: s.linear_flops + s.attention_flops,
    "attention_flops": lambda s, r: s.attention_flops,
    "yield": lambda s, r: s.yield_tokens,
}
"""What may be asked of a pass, in SI."""

RATES = ("linear_frac", "attention_frac", "memory_frac", "link_frac", "network_frac")


def technique_value(case: Case) -> float:
    """The quantity of the pass after the techniques."""
    return _value(case, "techniques") / _unit(case)


def technique_gain(case: Case) -> float:
    """The quantity after the techniques over the same of the baseline: a speed-up where it is a rate, a saving where it is bytes."""
    return _value(case, "techniques") / _value(case, "baseline")


def technique_cut(case: Case) -> float:
    """The quantity of the baseline over the same after the techniques: a speed-up where it is seconds."""
    return 1 / technique_gain(case)


def request_gain(case: Case) -> float:
    """Seconds of a whole request, a prompt of ``tokens`` and ``out_tokens`` decode steps, without the techniques over with them."""
    return _request(case, "baseline") / _request(case, "techniques")


def _request(case: Case, side: str) -> float:
    """Prefill, then decode steps at the mean context; a batch of ``n_seqs`` runs them together."""
    n, out = case.numbers["tokens"], case.numbers["out_tokens"]
    parts = {"prefill": (n, 1.0), "decode": (n + out / 2, out)}
    total = 0.0
    for kind, (tokens, times) in parts.items():
        words = {**case.words, "pass": kind, "quantity": "seconds"}
        total += times * _value(replace(case, words=words, numbers={**case.numbers, "tokens": tokens}), side)
    return total


def identity_tokens_per_s(case: Case) -> float:
    """Tokens per second and GPU of ``n_seqs`` sequences that each get one every ``tpot_s``, over ``gpus``: batch over time."""
    return case.numbers["n_seqs"] / case.numbers["tpot_s"] / case.numbers["gpus"]


def split_usd_per_mtoken(case: Case) -> float:
    """Dollars per million decoded tokens with attention on ``words.attention`` and FFN on ``words.ffn``, at 8-bit peaks."""
    n, model = case.numbers, model_of(case.layout) if case.layout.model else None
    work = token_work(model, n["tokens"], kv_element_bytes=1.0) if model else n
    cards = [registry.accelerator(case.words[side]) for side in ("attention", "ffn")]
    prices = [n["attention_usd_per_h"], n["ffn_usd_per_h"]]
    return split_usd(work, cards[0], prices[0], cards[1], prices[1], dtype=case.words.get("dtype", "fp8")) * 1e6


def token_work_part(case: Case) -> float:
    """Bytes or FLOPs of a decoded token (``words.part``), with an 8-bit cache."""
    return token_work(model_of(case.layout), case.numbers["tokens"], kv_element_bytes=1.0)[case.words["part"]]


def longest_context(case: Case) -> float:
    """Most tokens of one sequence whose pass fits in device and host memory, by bisection."""
    low, high = 1.0, 2.0**27
    while high - low > low / 4096:
        middle = (low + high) / 2
        tried = replace(case, numbers={**case.numbers, "tokens": middle}, words={**case.words, "quantity": "seqs_that_fit"})
        low, high = (middle, high) if _value(tried, "techniques") >= 1 else (low, middle)
    return low


def _value(case: Case, side: str) -> float:
    """One side's quantity, SI."""
    numbers = _numbers(case, side)
    names = case.words.get(side, "").split()
    quantity = case.words["quantity"]
    if quantity not in QUANTITIES:
        raise UnknownName("quantity of a pass", quantity, QUANTITIES)
    rows = [technique(name) for name in names]
    known = {name for row in rows for name in parameters(row.family)}
    given = {k: (int(v) if v == int(v) else v) for k, v in numbers.items() if k in known}
    r = _rates(case, numbers)
    n_seqs = numbers.get("n_seqs", 1.0)
    decoded = numbers.get("decoded_tokens", 0.0)
    if not n_seqs:  # as many as fit when the last of their answers' tokens is there
        last = {**numbers, "tokens": numbers["tokens"] + decoded}
        n_seqs = scalar(seqs_that_fit(apply(rows, _pass(case, last, 1.0), **given), r))
        if n_seqs < 1:
            return 0.0
    step = apply(rows, _pass(case, {**numbers, "tokens": numbers["tokens"] + decoded / 2}, n_seqs), **given)
    return scalar(QUANTITIES[quantity](step, r))


def _numbers(case: Case, side: str) -> dict[str, float]:
    """The numbers of one side: ``base_x`` is ``x`` of the baseline and not of the other."""
    own = {k: v for k, v in case.numbers.items() if not k.startswith("base_")}
    if side == "baseline":
        own |= {k.removeprefix("base_"): v for k, v in case.numbers.items() if k.startswith("base_")}
    return own


def _pass(case: Case, numbers: dict[str, float], n_seqs: float) -> Step:
    model, tokens = model_of(case.layout), numbers["tokens"]
    if "layers" in numbers:  # a paper's bench of some layers
        model = replace(model, n_layers=int(numbers["layers"]), n_dense_layers=min(model.n_dense_layers, int(numbers["layers"])))
    kind = case.words["pass"]
    if kind == "decode":
        step, ranks = decode_step(model, kv_tokens=tokens, n_seqs=n_seqs), case.layout.n_gpus
        hops = 2.0 * (ranks - 1) * model.n_layers * numbers.get("all_reduces", 0.0)  # of a ring, each with 1/ranks of the tokens' values
        return replace(step, network_bytes=hops / ranks * n_seqs * model.hidden * 2.0, n_hops=hops)
    if kind == "prefill":
        return prefill_step(model, prompt_tokens=tokens, n_seqs=n_seqs, chunk_tokens=numbers.get("chunk_tokens", 0.0))
    if kind == "train":
        return train_pass(model, seq_tokens=tokens, n_seqs=n_seqs, recompute=bool(numbers.get("recompute", 0)))
    raise BadInput(f"case {case.name}: pass={kind!r} is not known; legal: prefill, decode, train")


def _rates(case: Case, numbers: dict[str, float]) -> Rates:
    layout = case.layout
    cluster = registry.cluster(layout.gpu, layout.n_gpus, layout.gpus_per_node or None)
    fractions = dict.fromkeys(RATES, 1.0) if case.words.get("rates") == "floor" else {}
    fractions |= {name: numbers[name] for name in RATES if name in numbers}
    words = {"kernel": "decode"} if case.words.get("pass") == "decode" else {}
    words |= {name: case.words[name] for name in ("dtype", "kernel") if name in case.words}
    found = rates(cluster, **words, **fractions)  # type: ignore[arg-type]
    found = replace(found, **{f.name: numbers[f.name] for f in fields(Rates) if f.name in numbers})
    if case.words.get("pooled"):  # one pass spread evenly over all GPUs
        pooled = ("linear_flops_per_s", "attention_flops_per_s", "hbm_bytes_per_s", "host_bytes_per_s", "hbm_bytes", "host_ram_bytes")
        found = replace(found, **{name: getattr(found, name) * layout.n_gpus for name in pooled})
    return found


def _unit(case: Case) -> float:
    if case.unit not in UNITS:
        raise BadInput(f"case {case.name}: unit {case.unit!r} is not known; legal: {', '.join(UNITS)}")
    return UNITS[case.unit]
