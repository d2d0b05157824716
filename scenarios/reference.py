"""Published claims as data: where a number was printed, in which setting, and how far a prediction may be off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import BadFile, UnknownName
from .load import build, by_name, names, read_toml
from .plan import ParallelPlan
from .serving_case import Serving
from .workload import TrainWorkload

Evidence = Literal["V", "F", "C", "N", "D", "M"]
"""How the number is known: V or F read in the primary source, C derived and checked, N in third-party notes, D derived, M recalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A paper, repository or report that published numbers."""

    name: str
    title: str
    authors: str
    year: int
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model on GPUs under a plan: one side of a comparison. Empty text and 0 mean: not needed by the predictor.

    ``change`` replaces fields of the registry's model, for the variants a paper makes (33 heads, 64 experts).
    """

    model: str = ""
    change: dict[str, int] = field(default_factory=dict)
    gpu: str = ""
    n_gpus: int = 1
    gpus_per_node: int = 0
    plan: ParallelPlan = field(default_factory=ParallelPlan)
    work: TrainWorkload = field(default_factory=lambda: TrainWorkload(seq_tokens=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One published number: what was measured (``metric``), where (``layout``; ``baseline`` for a ratio), and the bar.

    ``serving`` and ``serving_baseline`` are the same for serving experiments. ``predictor`` names the function that must reproduce it. A
    prediction passes within ``tolerance_frac`` of ``published`` (or within ``tolerance_abs`` of it where that is given); only cases with
    evidence V or F can fail a run, the others are shown as claimed. ``numbers`` and ``words`` are further parameters of the predictor,
    never the answer. ``flops_convention`` says what a rate counts.
    """

    name: str
    system: str
    claim: str
    metric: str
    unit: str
    predictor: str
    published: float
    tolerance_frac: float = 0.0
    tolerance_abs: float = 0.0
    evidence: Evidence
    reference: str
    source: str
    flops_convention: Literal["", "causal", "noncausal", "hardware"] = ""
    note: str = ""
    layout: Layout = field(default_factory=Layout)
    baseline: Layout | None = None
    serving: Serving | None = None
    serving_baseline: Serving | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def is_hard(self) -> bool:
        """Whether a miss fails the run: the number was read in a primary source."""
        return self.evidence in ("V", "F")

    def passes(self, predicted: float) -> bool:
        """Whether this prediction is inside the bar; a hair of rounding is allowed on exact bars."""
        allowed = max(self.tolerance_abs, self.tolerance_frac * abs(self.published), 1e-9 * abs(self.published))
        return abs(predicted - self.published) <= allowed


def reference(name: str) -> Reference:
    """A reference by name; UnknownName lists the nearest."""
    return by_name(Reference, "references", name, "reference")


def cases() -> dict[str, Case]:
    """Every case of ``scenarios/cases``, by name; one file holds one table, its ``[[row]]`` entries override the file's common keys."""
    found: dict[str, Case] = {}
    for path in names("cases").values():
        for case in read_cases(path):
            if case.name in found:
                raise BadFile(f"{path}: case {case.name!r} is defined twice")
            found[case.name] = case
    return found


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of one file: common keys merged under each ``[[row]]``; BadFile names the row at fault."""
    table = read_toml(path)
    rows = table.pop("row", None)
    if not isinstance(rows, list) or not rows:
        raise BadFile(f"{path}: needs at least one [[row]]")
    for row in rows:
        name = row.get("name", "")
        if not name:
            raise BadFile(f"{path}: a [[row]] without a name")
        yield build(Case, merged(table, row), f"{path}: {name}")


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``common`` with ``own`` over it, table by table."""
    out = dict(common)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def select(patterns: tuple[str, ...]) -> list[Case]:
    """Cases whose name is, or starts with, one of these words; or whose system is (any case). All when none is given; UnknownName else."""
    known = cases()
    if not patterns:
        return list(known.values())
    chosen: dict[str, Case] = {}
    for pattern in patterns:
        word = pattern.lower()
        hits = [c for c in known.values() if c.name.lower().startswith(word) or c.system.lower() == word]
        if not hits:
            raise UnknownName("case", pattern, {c.name for c in known.values()} | {c.system.lower() for c in known.values()})
        chosen.update({c.name: c for c in hits})
    return list(chosen.values())
