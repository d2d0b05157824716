"""All targets, found by listing this folder, and one call that emits a plan to each of them that can express it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from ...scenarios.errors import BadInput
from ...scenarios.hardware import Accelerator, Cluster
from ...scenarios.model import ModelSpec
from ...scenarios.plan import ParallelPlan
from ...scenarios.workload import TrainWorkload
from . import readme, script
from .target import CannotExpress, make_job, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """The folder as ``{file name: text}``, and for each target the files it wrote or the reason why it cannot express the plan."""

    files: dict[str, str]
    written: dict[str, tuple[str, ...]]
    omitted: dict[str, CannotExpress]


@cache
def targets() -> dict[str, ModuleType]:
    """Target name -> module: every module of this folder that has a ``TITLE`` and an ``emit``."""
    package = __package__ or ""
    names = sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__))
    modules = {name: importlib.import_module(f"{package}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "TITLE") and hasattr(module, "emit")}


def emit_plan(
    *,
    model: ModelSpec,
    plan: ParallelPlan,
    work: TrainWorkload,
    cluster: Cluster,
    accelerator: Accelerator,
    facts: Mapping[str, Any] | None = None,
) -> Emitted:
    """Every file of the plan's folder: what each target writes, plan.json and a README that also says what was left out, and why.

    ``facts`` are the prediction's numbers (readme.py names them). BadInput if the numbers of the plan contradict each other.
    """
    job = make_job(model, plan, work, cluster, accelerator, facts or {})
    files = {"plan.json": to_json(script.plan_json(job))}
    written: dict[str, tuple[str, ...]] = {}
    omitted: dict[str, CannotExpress] = {}
    for name, module in targets().items():
        try:
            found: dict[str, str] = module.emit(job)
        except CannotExpress as reason:
            omitted[name] = reason
            continue
        clashes = [file for file, text in found.items() if files.setdefault(file, text) != text]
        if clashes:
            raise BadInput(f"target {name} writes {', '.join(clashes)} differently from another target")
        written[name] = tuple(found)
    return Emitted(files={"README.md": readme.render(job, targets(), written, omitted), **files}, written=written, omitted=omitted)
