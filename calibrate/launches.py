"""Disaggregated launches of a public benchmark suite: workers, layouts, limits and loads, as ``scenarios/launches`` holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache

from ..scenarios.errors import BadFile
from ..scenarios.load import names, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """``n`` workers of one pool. ``limits``: tokens a step and seats as the engine's flags have them, ``memory`` in
    hundredths, ``copies`` of experts, the largest CUDA ``graph``, the KV ``pool`` in tokens, steps between two messages of a ``stream`` and
    between two looks for requests (``poll``), ``a2a`` where experts get their tokens by all-to-all. ``experts`` is the kernel asked for
    them, ``products`` the library of block-scaled 8-bit products where that is not DeepGEMM.
    """

    n: int
    tp: int
    dp: int
    ep: int
    limits: dict[str, int] = field(default_factory=dict)
    kv_dtype: str = "fp8"
    experts: str = ""
    products: str = ""

    @property
    def gpus_each(self) -> int:
        return self.tp * self.dp

    @property
    def layout(self) -> tuple[int, int, int, int]:
        return self.n, self.tp, self.dp, self.ep


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch and the loads it was measured under. ``rate_per_s`` is the client's own limit (0: none), ``rounds`` how many requests it
    sends for each client; days are ISO.
    """

    isl: int
    osl: int
    clients: tuple[int, ...]
    prefill: Workers
    decode: Workers
    speculates: bool
    rate_per_s: int
    since: str
    until: str
    rounds: int = 10

    @property
    def n_gpus(self) -> int:
        return self.prefill.n * self.prefill.gpus_each + self.decode.n * self.decode.gpus_each

    def days_off(self, day: str) -> int:
        """Days from a run's day to those of this launch, its last excluded: negative before, positive after, 0 within."""
        when, since, until = (date.fromisoformat(one) for one in (day, self.since, self.until))
        if when < since:
            return (when - since).days
        return max((when - until).days + 1, 0)

    def in_force(self, day: str) -> bool:
        """Whether a run of this day may be of this launch: sweeps run up to 16 days before their merge, and some days after the next."""
        return -BEFORE_DAYS <= self.days_off(day) <= AFTER_DAYS + 1


BEFORE_DAYS, AFTER_DAYS = 16, 10
WORKERS = re.compile(r"(\d+) x (?:tp(\d+))?(?:dp(\d+))?(?:ep(\d+))?((?: \w+=[\w.]+)*)")


@cache
def launches(engine: str, model: str, gpu: str, bits: int) -> tuple[Launch, ...]:
    """Every launch of an engine, model (the suite's name for it), GPU and weight format (8 or 4 bits); none where nothing is recorded."""
    found: list[Launch] = []
    for path in names("launches").values():
        for suite in read_toml(path)["suite"]:
            if (suite["engine"], suite["gpu"], suite["bits"]) == (engine, gpu, bits) and model.startswith(suite["model"]):
                found += [launch(line) for line in suite["runs"]]
    return tuple(found)


def launch(line: str) -> Launch:
    """A line ``isl/osl | clients | prefill workers | decode workers | plain or mtp | since until``; BadFile when it is not one."""
    parts = [part.strip() for part in line.split("|")]
    if len(parts) != 6:
        raise BadFile(f"launch {line!r}: {len(parts)} parts; give lengths, clients, prefill, decode, kind and days")
    isl, osl = parts[0].split("/")
    kind, *words = parts[4].split()
    load = dict(word.split("=") for word in words)
    since, until = parts[5].split()
    return Launch(
        isl=int(isl),
        osl=int(osl),
        clients=tuple(int(c) for c in parts[1].split()),
        prefill=workers(parts[2]),
        decode=workers(parts[3]),
        speculates=kind == "mtp",
        rate_per_s=int(load.get("rate", 0)),
        rounds=int(load.get("rounds", 10)),
        since=since,
        until=until,
    )


def workers(text: str) -> Workers:
    """``4 x tp8ep8 seats=32 memory=0.9``: four workers of that layout and their limits; BadFile when it is not of that form."""
    match = WORKERS.fullmatch(text)
    if not match:
        raise BadFile(f"workers {text!r}: give e.g. '4 x tp8ep8 seats=32 memory=0.9'")
    n, tp, dp, ep = (int(v or 1) for v in match.groups()[:4])
    named = dict(word.split("=") for word in match[5].split())
    kv, experts, products = named.pop("kv", "fp8"), named.pop("experts", ""), named.pop("products", "")
    limits = {name: round(100 * float(value)) if name == "memory" else int(value) for name, value in named.items()}
    return Workers(n=n, tp=tp, dp=dp, ep=ep, limits=limits, kv_dtype=kv, experts=experts, products=products)


def distinct(found: Iterable[Launch], day: str) -> Iterator[Launch]:
    """One launch for each set of workers, the one nearest to a day: the same ones may have been measured under several loads."""
    seen = set()
    for one in sorted(found, key=lambda launch: abs(launch.days_off(day))):
        key = (one.prefill.layout, one.decode.layout, one.speculates)
        if key not in seen:
            seen.add(key)
            yield one
