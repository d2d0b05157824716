"""One thing to measure: a kernel, a dtype and a shape, with its floors and what one measurement of it yields. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Row = dict[str, int | float | str]
"""One measured row: the columns of the output table that apply to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate measurement. ``channel`` names what ``moved_bytes`` cross: ``hbm`` or ``host``."""

    kernel: str
    family: str
    framework: str
    dtype: str
    shape: Mapping[str, int | str] = field(hash=False)
    flops: float
    moved_bytes: float
    channel: str = "hbm"

    @property
    def key(self) -> str:
        """A stable name of the point: ``gemm/bfloat16/k=4096,m=1,n=4096``."""
        return f"{self.kernel}/{self.dtype}/" + ",".join(f"{name}={self.shape[name]}" for name in sorted(self.shape))

    @property
    def group(self) -> str:
        """Points of one group differ in sizes only: same kernel, dtype and text columns."""
        texts = [f"{name}={value}" for name, value in sorted(self.shape.items()) if isinstance(value, str)]
        return "/".join([self.kernel, self.dtype, *texts])

    @property
    def sizes(self) -> dict[str, float]:
        """``log2(1 + size)`` of every integer column."""
        return {name: math.log2(1 + value) for name, value in sorted(self.shape.items()) if isinstance(value, int)}


class MeasureFailed(Exception):
    """This point cannot be measured here (too large, not supported); others can."""


class DeviceLost(Exception):
    """The GPU's state is broken; nothing more can be measured in this process."""


def to_line(value: object) -> str:
    """One line of a journal."""
    return json.dumps(value, sort_keys=True, allow_nan=False) + "\n"
