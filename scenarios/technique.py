"""A published technique as data: which family it belongs to, with which parameters, what it loses, and how it is switched on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .errors import BadInput
from .load import by_name, names
from .reference import Evidence
from .registry import find

Level = Literal["L0", "L1", "L2", "L3", "LT"]
"""L0 exact, L1 exact in distribution, L2 numerics only, L3 lossy, LT needs (re)training."""

LEVELS: dict[str, str] = {
    "L0": "exact",
    "L1": "same distribution",
    "L2": "numerics (--allow quant)",
    "L3": "lossy (--allow lossy:<points>)",
    "LT": "needs training (--allow retrain)",
}
Target = Literal["vllm", "sglang", "tensorrt-llm", "deepspeed", "megatron", "torchtitan", "fsdp", "arctic", "verl", "slime", "huggingface"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One published system as ``family`` and ``params`` (the keyword-only parameters of the family's function).

    ``levels`` are all consents it needs; ``loss_points`` is the published loss in points of its own benchmark at these parameters
    (absent: not published, so no ``lossy:<points>`` admits it) and ``retention`` the sentence shown to who must consent.
    ``deploy`` maps a target to its mainline switch; without one the technique is research-only and names the ``nearest`` thing that is
    deployable. ``evidence`` says how the parameters are known (as in cases); ``M`` and ``A`` rows are soft. ``scope`` tells what the
    family does not model of it. Raises BadInput when a row contradicts itself.
    """

    name: str
    title: str
    family: str
    levels: tuple[Level, ...]
    retention: str
    source: str
    evidence: Evidence | Literal["A"]
    params: dict[str, Any] = field(default_factory=dict)
    loss_points: float | None = None
    repository: str = ""
    deploy: dict[str, str] = field(default_factory=dict)
    nearest: str = ""
    scope: str = ""

    def __post_init__(self) -> None:
        if not self.levels:
            raise BadInput(f"technique {self.name} has no level; legal: {', '.join(LEVELS)}")
        for target in self.deploy:
            if target not in get_args(Target):
                raise BadInput(f"technique {self.name}: deploy target {target!r} is not known; legal: {', '.join(get_args(Target))}")
        if not self.deploy and not self.nearest:
            raise BadInput(f"technique {self.name} has no deploy switch; name the nearest deployable equivalent (nearest = …)")
        if self.loss_points is not None and "L3" not in self.levels and "LT" not in self.levels:
            raise BadInput(f"technique {self.name}: loss_points={self.loss_points} belongs to a lossy level (L3 or LT), not {self.levels}")

    @property
    def status(self) -> str:
        """``deployable`` when some target has a switch, else ``research-only``."""
        return "deployable" if self.deploy else "research-only"

    @property
    def is_soft(self) -> bool:
        """Whether its parameters were not read in a primary source."""
        return self.evidence in ("M", "A")


def technique(name: str) -> Technique:
    """A technique by name; UnknownName lists the nearest."""
    return by_name(Technique, "techniques", find("techniques", name) or name, "technique")


def techniques() -> dict[str, Technique]:
    """Every row of ``scenarios/techniques``, by name."""
    return {name: technique(name) for name in names("techniques")}


def refusal(row: Technique, allow: Iterable[str]) -> str:
    """Why these consents do not admit a technique, or '' if they do; what is lossless needs none.

    ``allow`` holds ``quant`` (admits L2), ``lossy:<points>`` (L3 whose published loss is at most that) and ``retrain`` (LT).
    """
    words = set(allow)
    points = max((float(m.group(1)) for w in words if (m := re.fullmatch(r"lossy:([0-9.]+)", w))), default=None)
    if "L2" in row.levels and "quant" not in words:
        return f"{row.name} changes the numerics; add --allow quant"
    if "LT" in row.levels and "retrain" not in words:
        return f"{row.name} needs a trained checkpoint; add --allow retrain if you have one"
    if "L3" not in row.levels:
        return ""
    if points is None:
        return f"{row.name} loses quality ({row.retention}); add --allow lossy:<points>"
    if row.loss_points is None:
        return f"{row.name} publishes no loss in points ({row.retention}), so no lossy:<points> admits it"
    if row.loss_points > points:
        return f"{row.name} loses {row.loss_points:g} points ({row.retention}); {points:g} are allowed"
    return ""


def allowed(rows: Iterable[Technique], allow: Iterable[str]) -> list[Technique]:
    """The techniques these consents admit, in their order; lossless ones (L0, L1) always."""
    words = tuple(allow)
    return [row for row in rows if not refusal(row, words)]
