"""Everything a price needs to know about where it runs: card, cluster, calibrated roofline and network, framework."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios import registry
from ..scenarios.calibration import Calibration, load_calibration
from ..scenarios.framework import Framework
from ..scenarios.hardware import Accelerator, Cluster
from .collectives import Network
from .roofline import Roofline


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One cluster under one framework, ready to price ops."""

    accelerator: Accelerator
    cluster: Cluster
    framework: Framework
    roofline: Roofline
    network: Network


def make_system(cluster: Cluster, framework: str | Framework, calibration: Calibration | None = None) -> System:
    """Look up the card, links and framework of a cluster and calibrate them; UnknownName if a name is not in the registry."""
    accelerator = registry.accelerator(cluster.gpu)
    if calibration is None:
        calibration = load_calibration(accelerator)
    intra, inter = registry.link(cluster.intra), registry.link(cluster.inter)
    return System(
        accelerator=accelerator, cluster=cluster, framework=registry.framework(framework) if isinstance(framework, str) else framework,
        roofline=Roofline(accelerator, calibration, registry.link(cluster.host_link).bytes_per_s),
        network=Network(cluster, accelerator, intra, inter, calibration),
    )  # fmt: skip
