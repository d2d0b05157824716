"""What one layer may do with its activations, and what each choice costs: the menu the integer program picks from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan, Recompute
from ..scenarios.workload import TrainWorkload
from .activations import layer_saved
from .layer_time import LayerTime, layer_time
from .op import Floats
from .overlap import exposed
from .shard import shard
from .system import System


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOption:
    """One policy for one layer and micro-batch: seconds of forward and backward with exposed messages and copies, bytes kept.

    ``hbm_bytes`` stays on the device and ``host_bytes`` in this rank's share of host memory until the micro-batch's backward.
    """

    name: str
    recompute: Recompute
    offload: bool
    time_s: Floats
    hbm_bytes: Floats
    host_bytes: Floats


def layer_options(model: ModelSpec, plan: ParallelPlan, work: TrainWorkload, system: System) -> list[LayerOption]:
    """Every policy of a layer under this layout: none, selective, remat and full recomputation, full with its checkpoint on the host.

    Times and bytes are those of ``train_step`` and ``train_memory`` for the same policy on all layers, divided by their number.
    """
    cut = shard(model, plan, work)
    menu: list[LayerOption] = []
    policies: tuple[Recompute, ...] = ("none", "selective", "remat", "full")
    for recompute in policies:
        chosen = dataclasses.replace(plan, recompute=recompute, recompute_layers=-1)
        time = layer_time(model, chosen, cut, system)
        kept = layer_saved(model, chosen, cut, system.framework, recompute)
        seconds = layer_seconds(time)
        menu.append(LayerOption(name=recompute, recompute=recompute, offload=False, time_s=seconds, hbm_bytes=kept, host_bytes=0.0 * kept))
        if recompute == "full":
            copy = system.roofline.host_copy_s(kept)
            late = exposed(copy, time.fwd_s, 1.0) + exposed(copy, time.bwd_s + time.wgrad_s, 1.0)
            name = "full+offload"
            menu.append(
                LayerOption(name=name, recompute=recompute, offload=True, time_s=seconds + late, hbm_bytes=0.0 * kept, host_bytes=kept)
            )
    return menu


def layer_seconds(time: LayerTime) -> Floats:
    """Forward and backward of one layer with what every axis leaves exposed."""
    compute = time.fwd_s + time.bwd_s + time.wgrad_s
    messages = time.tp_fwd_s + time.tp_bwd_s + time.cp_fwd_s + time.cp_bwd_s + time.ep_fwd_s + time.ep_bwd_s
    return np.asarray(compute + messages)
