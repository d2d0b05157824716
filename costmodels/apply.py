"""Applies techniques: finds the family a row names, checks its parameters against the family's signature, rewrites in a stated order."""

from __future__ import annotations

import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, Literal, TypeVar

import numpy as np

from ..scenarios.errors import BadInput, UnknownName
from ..scenarios.plan import ParallelPlan
from ..scenarios.technique import Technique, techniques
from . import families as folder
from .step import Stage, Step

Subject = TypeVar("Subject", Step, ParallelPlan)
Family = Callable[..., Any]


@cache
def families() -> tuple[str, ...]:
    """Names of all families: the files of the folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folder.__path__)))


@cache
def family(name: str) -> Family:
    """The function of a family: the one named like its file. UnknownName lists the nearest."""
    if name not in families():
        raise UnknownName("family of techniques", name, families())
    found: Family = getattr(import_module(f"{folder.__name__}.{name}"), name)
    return found


@cache
def stage(name: str) -> int:
    """When a family is applied (``Stage``); a family that rewrites the plan comes first, before there is a step."""
    return int(getattr(import_module(f"{folder.__name__}.{name}"), "STAGE", 0))


def subject(name: str) -> Literal["step", "plan"]:
    """What a family rewrites: its first parameter is a ``step`` or a ``plan``."""
    first = next(iter(inspect.signature(family(name)).parameters))
    return "plan" if first == "plan" else "step"


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters of a family, with their types resolved: the schema of its rows."""
    function = family(name)
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function).parameters.values()
    return {p.name: p.replace(annotation=hints[p.name]) for p in signature if p.kind is p.KEYWORD_ONLY}


def check(row: Technique) -> None:
    """BadInput unless a row's parameters are those of its family: known, complete, of the right type, fractions of kept things in 0..1."""
    legal = parameters(row.family)
    listed = ", ".join(f"{p.name}{'' if p.default is p.empty else f'={p.default}'}" for p in legal.values())
    for name, value in row.params.items():
        if name not in legal:
            raise BadInput(f"technique {row.name}: {row.family} has no parameter {name!r}; legal: {listed}")
        wrong = _wrong(name, value, legal[name].annotation)
        if wrong:
            raise BadInput(f"technique {row.name}: {name}={value!r} must be {wrong}")
    missing = [p.name for p in legal.values() if p.default is p.empty and p.name not in row.params]
    if missing:
        raise BadInput(f"technique {row.name}: {row.family} needs {', '.join(missing)}; legal: {listed}")


ABOVE_ONE = ("overhead_frac",)
"""Fractions that may exceed 1: time on top of other time."""


def _wrong(name: str, value: Any, hint: Any) -> str:
    """What the value should have been, or '' if it is legal."""
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        return "" if value in options else f"one of {', '.join(map(str, options))}"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        wrong = [_wrong(name, value, h) for h in typing.get_args(hint) if h is not type(None)]
        return "" if "" in wrong else wrong[0]
    if hint in (bool, str):
        return "" if isinstance(value, hint) else {bool: "true or false", str: "text"}[hint]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return "a number, not negative"
    if hint is int and value != int(value):
        return "a whole number"
    if name.endswith(("_frac", "acceptance")) and name not in ABOVE_ONE and value > 1:
        return "a fraction between 0 and 1"
    return ""


def apply(rows: Iterable[Technique], target: Subject, **overrides: Any) -> Subject:
    """The step (or plan) after these techniques, applied by ``Stage``, ties by name; rows that rewrite the other kind are left out.

    ``overrides`` replace parameters of every row whose family has them: a setting of the paper that varies. Raises BadInput as ``check``.
    """
    kind = "plan" if isinstance(target, ParallelPlan) else "step"
    for row in sorted(rows, key=lambda r: (stage(r.family), r.name)):
        check(row)
        if subject(row.family) == kind:
            own = {k: v for k, v in overrides.items() if k in parameters(row.family)}
            target = family(row.family)(target, **{**row.params, **own})
    return target


def used(plan: ParallelPlan) -> list[Technique]:
    """The rows whose options a plan has, to show their retention and switches; options that every plan has by default do not count."""
    plain = ParallelPlan()
    rows = [row for row in techniques().values() if subject(row.family) == "plan"]
    return [row for row in rows if any(getattr(plain, k) != v for k, v in row.params.items()) and _has(plan, row)]


def _has(plan: ParallelPlan, row: Technique) -> bool:
    return all(np.all(np.asarray(getattr(plan, k)) == v) for k, v in row.params.items())


__all__ = ["Stage", "apply", "check", "families", "family", "parameters", "stage", "subject", "used"]
