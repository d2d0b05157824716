"""A question to the planner: what to run, on what, and what to optimise; from flags or a TOML file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import BadInput
from .load import build, read_toml
from .plan import Optimizer
from .units import parse_tokens, suffix_of

Objective = Literal["time", "cost", "throughput", "max-seq"]
Task = Literal["train", "serve", "rl"]
OBJECTIVES: tuple[str, ...] = ("time", "cost", "throughput", "max-seq")
TASKS: tuple[str, ...] = ("train", "serve", "rl")
PRECISIONS: tuple[str, ...] = ("bf16", "fp16", "fp8")
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
MAX_SEQ = 0
"""``seq_tokens`` of a scenario that asks for the longest sequence that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question. 0 and '' mean: take the default of the model, the cluster or the framework.

    ``seq_tokens = 0`` asks for the longest sequence. ``allow`` holds ``quant``, ``lossy:<points>``, ``retrain``. ``framework = "auto"``
    searches every framework the planner can emit. ``index_bits = 31`` adds the limit of kernels that index a tensor with int32.
    ``memory_margin_frac`` of the device's memory stays free: predicted peaks are good to a few percent, and a plan must not die of it.
    """

    model: str
    n_gpus: int
    gpu: str = "h100-sxm"
    cluster: str = ""
    gpus_per_node: int = 0
    task: Task = "train"
    seq_tokens: int = 8192
    objective: Objective = "time"
    allow: tuple[str, ...] = ()
    global_batch: int = 0
    micro_batch: int = 0
    precision: str = "bf16"
    optimizer: str = "adamw"
    framework: str = "auto"
    host_ram_bytes: float = 0.0
    price_usd_per_h: float = 0.0
    calibration: str = ""
    index_bits: int = 0
    memory_margin_frac: float = 0.05
    top: int = 5

    def __post_init__(self) -> None:
        limits = {"n_gpus": (1, 1_000_000), "gpus_per_node": (0, 1024), "seq_tokens": (0, 10**12), "global_batch": (0, 10**9),
                  "micro_batch": (0, 4096), "top": (1, 100)}  # fmt: skip
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise BadInput(f"{field}={value:,} must be between {low:,} and {high:,}")
        for field, legal in (("objective", OBJECTIVES), ("task", TASKS), ("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, field) not in legal:
                raise BadInput(f"{field}={getattr(self, field)!r} is not known; legal: {', '.join(legal)}")
        for field in ("host_ram_bytes", "price_usd_per_h"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) >= 0):
                raise BadInput(f"{field}={getattr(self, field)} must be finite and not negative")
        if not 0 <= self.memory_margin_frac < 1:
            raise BadInput(f"memory_margin={self.memory_margin_frac} must be at least 0 and less than 1, e.g. 5%")
        if self.index_bits not in (0, 31, 32, 63):
            raise BadInput(f"index_bits={self.index_bits} is not a kernel's index width; legal: 0 (no limit), 31, 32, 63")
        if self.objective == "max-seq" and self.seq_tokens != MAX_SEQ:
            raise BadInput(f"objective max-seq looks for the sequence itself; drop seq={self.seq_tokens:,} or write seq=max")
        if self.seq_tokens == MAX_SEQ and self.objective != "max-seq":
            raise BadInput(f"seq=max looks for the longest sequence; drop objective={self.objective} or write objective=max-seq")
        for word in self.allow:
            _check_allowed(word)
        if self.precision == "fp8" and not self.allows_quant:
            raise BadInput("precision=fp8 changes the numerics; add --allow quant to accept that, or use bf16")

    @property
    def allows_quant(self) -> bool:
        return "quant" in self.allow


def _check_allowed(word: str) -> None:
    points = re.fullmatch(r"lossy:([0-9]+(?:\.[0-9]+)?)", word)
    if word not in ("quant", "retrain") and (points is None or float(points.group(1)) > 100):
        raise BadInput(f"allow={word!r} is not known; legal: quant, lossy:<points 0 to 100>, retrain")


def parse_seq(text: str) -> int:
    """``max`` -> 0, else a token count (``131072``, ``128K``, ``1M``, ``1e6``); BadInput otherwise."""
    return MAX_SEQ if text.strip().lower() == "max" else parse_tokens(text)


def read_scenario(path: Path | None, flags: Mapping[str, Any]) -> Scenario:
    """A scenario from a TOML file (or none) with the flags laid over it; flags that are None were not given.

    Raises BadFile for a file that is not a scenario, BadInput for a value that is not legal.
    """
    data = _table(path) if path else {}
    data.update({key: value for key, value in flags.items() if value is not None})
    if "seq_tokens" not in data and data.get("objective") == "max-seq":
        data["seq_tokens"] = MAX_SEQ
    if "objective" not in data and data.get("seq_tokens") == MAX_SEQ:
        data["objective"] = "max-seq"
    for field, flag in (("model", "--model"), ("n_gpus", "--gpus")):
        if field not in data:
            raise BadInput(f"no {field} given; add {flag}, or {field} = … in a scenario file")
    return Scenario(**data)


def _table(path: Path) -> dict[str, Any]:
    """The file's values by field of Scenario; ``seq`` may be text (``"1M"``, ``"max"``)."""
    table = read_toml(path)
    for key in ("seq", "seq_tokens"):
        if isinstance(table.get(key), str):
            table[key] = parse_seq(table[key])
    seq = table.get("seq", table.get("seq_tokens"))
    needed = {"model": "-", "n_gpus": 1}  # may still come as flags
    if seq == MAX_SEQ:
        needed["objective"] = "max-seq"
    elif seq is None and table.get("objective") == "max-seq":
        needed["seq"] = MAX_SEQ
    built = build(Scenario, needed | table, str(path))
    fields = {f.name for f in dataclasses.fields(Scenario)}
    names = {key: key if key in fields else next(f for f in fields if f.removesuffix(suffix_of(f)) == key) for key in table}
    return {field: getattr(built, field) for field in names.values()}


__all__ = ["MAX_SEQ", "OBJECTIVES", "OPTIMIZERS", "PRECISIONS", "TASKS", "Scenario", "parse_seq", "read_scenario"]
