"""What a target is: a module of this folder with ``TITLE``, ``HOW`` and ``emit(job) -> {file name: text}``; CannotExpress if it cannot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ...scenarios.errors import BadInput
from ...scenarios.hardware import Accelerator, Cluster
from ...scenarios.model import ModelSpec
from ...scenarios.plan import ParallelPlan
from ...scenarios.workload import TrainWorkload

T = TypeVar("T", ParallelPlan, TrainWorkload)


class CannotExpress(Exception):
    """The target has no switch for something in the plan: ``what`` says which, ``nearest`` the closest thing that does run."""

    def __init__(self, what: str, nearest: str) -> None:
        super().__init__(f"{what}; nearest: {nearest}")
        self.what, self.nearest = what, nearest


def refuse(*reasons: tuple[object, str, str]) -> None:
    """CannotExpress for the first of ``(present, what, nearest)`` that is present."""
    for present, what, nearest in reasons:
        if present:
            raise CannotExpress(what, nearest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One chosen plan with everything an emitter may need; ``facts`` are the prediction's numbers (see readme.py for the names)."""

    model: ModelSpec
    plan: ParallelPlan
    work: TrainWorkload
    cluster: Cluster
    accelerator: Accelerator
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> int:
        return int(self.plan.n_gpus)

    @property
    def seq_tokens(self) -> int:
        return int(self.work.seq_tokens)

    @property
    def global_batch(self) -> int:
        return int(self.work.global_batch)

    @property
    def learning_rate(self) -> float:
        return float(self.facts.get("learning_rate", 1e-5))

    @property
    def gradient_clipping(self) -> float:
        """Bound of the gradient norm; 0: none."""
        return float(self.facts.get("gradient_clipping", 1.0))

    @property
    def nodes(self) -> int:
        return self.cluster.n_nodes

    @property
    def ranks_per_node(self) -> int:
        return self.world // self.nodes


def make_job(
    model: ModelSpec,
    plan: ParallelPlan,
    work: TrainWorkload,
    cluster: Cluster,
    accelerator: Accelerator,
    facts: Mapping[str, Any],
) -> Job:
    """A Job whose numbers agree with each other.

    ``dp tp pp cp = n_gpus`` and ``dp micro_batch grad_accum = global_batch``; cp divides the sequence. BadInput otherwise, or for a batch
    of candidates.
    """
    plan, work = scalars(plan), scalars(work)
    job = Job(model=model, plan=plan, work=work, cluster=cluster, accelerator=accelerator, facts=facts)
    if job.world != cluster.n_gpus:
        raise BadInput(f"dp={plan.dp} tp={plan.tp} pp={plan.pp} cp={plan.cp} is {job.world} ranks, the cluster has n_gpus={cluster.n_gpus}")
    sequences = int(plan.dp * plan.micro_batch * plan.grad_accum)
    if sequences != job.global_batch:
        raise BadInput(
            f"dp={plan.dp} micro_batch={plan.micro_batch} grad_accum={plan.grad_accum} is {sequences} sequences a step, "
            f"the workload asks for global_batch={job.global_batch}"
        )
    if job.seq_tokens % int(plan.cp):
        raise BadInput(f"cp={plan.cp} does not divide seq_tokens={job.seq_tokens}")
    return job


def scalars(value: T) -> T:
    """The same dataclass with Python numbers for numpy ones; BadInput if a field holds more than one candidate."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if isinstance(item, (np.ndarray, np.generic)):
            if item.size != 1:
                raise BadInput(f"{f.name} holds {item.size} candidates; emit one plan at a time")
            number = item.reshape(()).item()
            changes[f.name] = int(number) if number == int(number) else number
    return dataclasses.replace(value, **changes)


def to_json(data: Any) -> str:
    """JSON as people read it; refuses NaN and infinity."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def to_yaml(data: Mapping[str, Any], indent: int = 0) -> str:
    """A mapping of mappings, lists and scalars as YAML 1.1; text is quoted, floats keep a point (``1e-05`` would be text)."""
    lines: list[str] = []
    for key, value in data.items():
        pad = "  " * indent
        if isinstance(value, Mapping):
            lines.append(f"{pad}{key}:\n{to_yaml(value, indent + 1)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            items = "".join(f"{pad}  - {to_yaml(item, indent + 2).lstrip()}" for item in value)
            lines.append(f"{pad}{key}:\n{items}")
        else:
            lines.append(f"{pad}{key}: {_yaml_scalar(value)}\n")
    return "".join(lines)


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_yaml_scalar(item) for item in value)}]"
    if isinstance(value, float) and "e" in repr(value):
        mantissa, exponent = repr(value).split("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
    return json.dumps(value, allow_nan=False)
