"""Times kernels on the GPU: rotated inputs, cold L2, CUDA-graph replay and eager kept apart, median with p10 and p90."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .collective import group_sizes, measure_collectives
from .device import Device, clock_mhz, find_device
from .draw import Draw
from .point import DeviceLost, MeasureFailed, Point, Row
from .spec import TORCH, Config, Inputs, KernelSpec, Shape, all_specs

MAX_SETS = 32
SAMPLE_S = 1e-3
"""One timed sample repeats the call until it is about this long, so that event and replay overheads vanish in it."""
MODE_S = 0.06
"""Time spent sampling one mode of one point."""
EAGER_BELOW_S = 2e-4
"""Longer calls hide their launch entirely: eager equals graph replay, and is not measured twice."""


FATAL = ("illegal memory access", "misaligned address", "launch failure", "device-side assert", "illegal instruction", "uncorrectable")
"""Parts of CUDA error messages after which the process can launch nothing more."""
CLOCK_EVERY_S = 2.0
"""Asking the driver for its clock takes as long as a measurement: ask this often at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds a call: median, 10th and 90th percentile of ``n_samples``."""

    median_s: float
    p10_s: float
    p90_s: float
    n_samples: int


def summary(samples_s: Sequence[float]) -> Timing:
    """Nearest-rank percentiles of samples; raises ValueError without any."""
    ordered = sorted(samples_s)
    if not ordered:
        raise ValueError("no samples to summarise")

    def rank(frac: float) -> float:
        return ordered[min(len(ordered) - 1, math.floor(frac * len(ordered)))]

    return Timing(median_s=rank(0.5), p10_s=rank(0.1), p90_s=rank(0.9), n_samples=len(ordered))


def input_bytes(value: object) -> int:
    """Bytes of all tensors in nested inputs."""
    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, dict):
        return sum(map(input_bytes, value.values()))
    return sum(map(input_bytes, value)) if isinstance(value, (list, tuple)) else 0


def copied(value: Any) -> Any:
    """The same inputs at other addresses. What an autograd graph hangs on, and pinned host memory, is shared."""
    if isinstance(value, torch.Tensor):
        return value if value.requires_grad or value.is_pinned() else value.clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list) else value


def n_sets(one_set_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """How many copies of the inputs outgrow the L2 three times over, within a third of the free memory; 1 … MAX_SETS."""
    wanted = math.ceil(3 * l2_bytes / max(1, one_set_bytes))
    return max(1, min(wanted, MAX_SETS, free_bytes // (3 * max(1, one_set_bytes))))


class GpuBench:
    """Measures points on the first CUDA GPU. A calibration run needs its public methods."""

    def __init__(self, device: Device, seed: int = 0, where: str = "cuda") -> None:
        self.device, self.seed, self.where = device, seed, where
        self._clock_read = (-CLOCK_EVERY_S, 0.0)
        self._flush = torch.empty(2 * device.l2_bytes // 4, dtype=torch.int32, device=where)

    def describe(self) -> dict[str, str | int]:
        """What was measured with what: recorded in the journal and in the table."""
        d = self.device
        return {
            "device_name": d.name, "device_uuid": d.uuid, "driver": d.driver, "torch": d.torch_version, "triton": d.triton_version,
            "n_gpus": d.n_gpus, "hbm_bytes": d.hbm_bytes, "l2_bytes": d.l2_bytes, "n_sms": d.n_sms, "capability": d.capability,
        }  # fmt: skip

    def ceilings(self) -> list[Point]:
        """The two rates everything else is compared with: a large copy, a large matrix product."""
        specs = all_specs()
        size = 2**30 if self.device.hbm_bytes > 2**34 else 2**28
        return [
            point_of(specs["device_copy"], {"num_bytes": size}, "int8"),
            point_of(specs["cublas_gemm"], {"m": 8192, "n": 8192, "k": 8192}, "bfloat16"),
        ]

    def collectives(self) -> list[Point]:
        """One point for each group of 2, 4, 8, … GPUs of this machine: all collectives, all message sizes."""
        return [
            Point(kernel="torch_nccl", family="nccl", framework=TORCH, dtype="bfloat16", shape={"num_gpus": n}, flops=0.0, moved_bytes=0.0)
            for n in group_sizes(self.device.n_gpus)
        ]

    def points(self) -> list[Point]:
        """Every registered shape this card can run and hold."""
        return [p for p in candidates(self.device.capability) if p.moved_bytes < 0.2 * self.device.hbm_bytes]

    def measure(self, point: Point) -> list[Row]:
        """One row per mode. Raises MeasureFailed if this point cannot run here, DeviceLost if nothing can any more."""
        try:
            return measure_collectives(int(point.shape["num_gpus"])) if point.family == "nccl" else list(self._rows(point))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise MeasureFailed("the GPU's memory is too small") from None
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            if any(sign in text for sign in FATAL):
                raise DeviceLost(text) from error
            raise MeasureFailed(text) from error

    def _rows(self, point: Point) -> Iterator[Row]:
        spec = all_specs()[point.kernel]
        torch.cuda.empty_cache()
        inputs = spec.make_inputs(point.shape, point.dtype, Draw(self.seed, self.where))
        free, _ = torch.cuda.mem_get_info()
        count = n_sets(input_bytes(inputs), self.device.l2_bytes, free)
        sets = [inputs, *(copied(inputs) for _ in range(count - 1))]
        config, probe_s = self._best_config(spec, point, sets)
        run = [lambda s=s: spec.run(s, config) for s in sets]
        for mode in spec.modes:
            if mode == "eager" and probe_s > EAGER_BELOW_S and len(spec.modes) > 1:
                continue
            timing = self.time_calls(run, mode)
            yield {
                "framework": point.framework,
                "framework_version": self.device.torch_version if point.framework == TORCH else f"triton {self.device.triton_version}",
                "kernel": point.kernel, "family": point.family, "dtype": point.dtype, **point.shape,
                "latency_us": 1e6 * timing.median_s, "p10_us": 1e6 * timing.p10_s, "p90_us": 1e6 * timing.p90_s, "mode": mode,
                "n_samples": timing.n_samples, "n_input_sets": count, "config": ",".join(f"{k}={v}" for k, v in config.items()),
                "clock_mhz": self._clock(),
            }  # fmt: skip

    def _best_config(self, spec: KernelSpec, point: Point, sets: list[Inputs]) -> tuple[Config, float]:
        """The fastest configuration that runs here, and the seconds of one call with it."""
        found: list[tuple[float, int]] = []
        configs, problem = spec.configs(point.shape, point.dtype), ""
        for i, config in enumerate(configs):
            try:
                spec.run(sets[0], config)
                torch.cuda.synchronize()
            except Exception as error:
                if "OutOfResources" not in type(error).__name__:
                    raise
                problem = str(error)
                continue
            start = torch.cuda.Event(enable_timing=True)
            stop = torch.cuda.Event(enable_timing=True)
            times = []
            for inputs in (sets * 3)[:5]:
                self._flush.fill_(i)
                start.record()
                spec.run(inputs, config)
                stop.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(stop) * 1e-3)
            found.append((sorted(times)[len(times) // 2], i))
        if not found:
            raise MeasureFailed(f"no launch configuration fits this card: {problem[:160]}")
        best_s, best = min(found)
        return configs[best], best_s

    def time_calls(self, calls: Sequence[Callable[[], None]], mode: str) -> Timing:
        """Median, p10 and p90 of one call, the inputs rotating; ``graph`` replays a captured chain, ``eager`` launches one by one."""
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        calls[0]()
        torch.cuda.synchronize()
        one_s = max(1e-6, time.perf_counter() - start_s)
        repeats = max(1, min(256, math.ceil(SAMPLE_S / one_s)))
        repeats = math.ceil(repeats / len(calls)) * len(calls) if repeats > 1 else 1
        chain = (list(calls) * math.ceil(repeats / len(calls)))[:repeats]
        replay = self._captured(chain) if mode == "graph" else lambda: [call() for call in chain]
        replay()
        torch.cuda.synchronize()
        samples: list[float] = []
        begin = time.perf_counter()
        while len(samples) < 7 or (time.perf_counter() - begin < MODE_S and len(samples) < 200):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._flush.fill_(len(samples))
            start.record()
            replay()
            stop.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(stop) * 1e-3 / repeats)
        return summary(samples)

    def _clock(self) -> float:
        now = time.perf_counter()
        if now - self._clock_read[0] >= CLOCK_EVERY_S:
            self._clock_read = (now, clock_mhz())
        return self._clock_read[1]

    def _captured(self, chain: Sequence[Callable[[], None]]) -> Callable[[], object]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            chain[0]()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in chain:
                call()
        replay: Callable[[], object] = graph.replay
        return replay


def point_of(spec: KernelSpec, shape: Shape, dtype: str) -> Point:
    """The candidate point of a kernel at a shape, with its floors."""
    return Point(
        kernel=spec.name, family=spec.family, framework=spec.framework, dtype=dtype, shape=dict(shape), flops=spec.flops(shape, dtype),
        moved_bytes=spec.moved_bytes(shape, dtype), channel=spec.channel,
    )  # fmt: skip


def candidates(capability: int) -> list[Point]:
    """All registered (kernel, dtype, shape) a card of this compute capability supports, in a fixed order."""
    return [
        point_of(spec, shape, dtype)
        for spec in all_specs().values()
        for dtype in spec.dtypes
        if spec.supports(dtype, capability)
        for shape in spec.shapes
    ]


def open_bench(seed: int = 0) -> GpuBench | None:
    """A bench on the first CUDA GPU, or None where there is none."""
    device = find_device()
    return None if device is None else GpuBench(device, seed)
