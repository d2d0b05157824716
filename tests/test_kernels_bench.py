"""What timing rests on, as far as it can be tested without a GPU: percentiles, rotated inputs, points, the device at hand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="kernels need torch")
pytest.importorskip("triton", reason="kernels need triton")
import torch
from roofplan.kernels.bench import MAX_SETS, GpuBench, copied, input_bytes, n_sets, open_bench, point_of, summary
from roofplan.kernels.device import Device, find_device, has_tma, n_sms, pretend
from roofplan.kernels.draw import Draw
from roofplan.kernels.point import DeviceLost, MeasureFailed, Row
from roofplan.kernels.spec import Config, Inputs, KernelSpec, all_specs


def test_percentiles_of_known_samples() -> None:
    timing = summary([float(i) for i in range(100, 0, -1)])
    assert (timing.p10_s, timing.median_s, timing.p90_s, timing.n_samples) == (11.0, 51.0, 91.0, 100)
    assert summary([3.0]).p10_s == summary([3.0]).p90_s == 3.0
    with pytest.raises(ValueError, match="no samples"):
        summary([])


@settings(derandomize=True)
@given(st.lists(st.floats(1e-7, 10), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_are_samples(samples: list[float]) -> None:
    timing = summary(samples)
    assert timing.p10_s <= timing.median_s <= timing.p90_s
    assert {timing.p10_s, timing.median_s, timing.p90_s} <= set(samples)


def test_inputs_rotate_until_they_outgrow_the_cache_three_times() -> None:
    assert n_sets(10, 100, 10**9) == 30
    assert n_sets(400, 100, 10**9) == 1
    assert n_sets(1, 10**6, 10**9) == MAX_SETS
    assert n_sets(10**6, 10**9, 9 * 10**6) == 3
    assert n_sets(0, 100, 10**9) == MAX_SETS


@settings(derandomize=True)
@given(st.integers(0, 2**40), st.integers(2**20, 2**28), st.integers(0, 2**40))
def test_rotated_inputs_fit_the_memory(one: int, l2: int, free: int) -> None:
    count = n_sets(one, l2, free)
    assert 1 <= count <= MAX_SETS
    assert count == 1 or 3 * count * one <= free


def test_copies_lie_elsewhere_and_are_equal() -> None:
    specs = all_specs()
    inputs = specs["grouped_gemm"].make_inputs(specs["grouped_gemm"].checks[0], "float32", Draw(0, "cpu"))
    again = copied(inputs)
    assert torch.equal(inputs["x"], again["x"])
    assert inputs["x"].data_ptr() != again["x"].data_ptr()
    plan, plan_again = next(iter(inputs["plans"].values())), next(iter(again["plans"].values()))
    assert plan["starts"].data_ptr() != plan_again["starts"].data_ptr()
    assert input_bytes(again) == input_bytes(inputs) > inputs["x"].nbytes


def test_what_an_autograd_graph_hangs_on_is_not_copied() -> None:
    spec = all_specs()["sdpa_flash_backward"]
    inputs = spec.make_inputs(spec.checks[0], "float32", Draw(0, "cpu"))
    again = copied(inputs)
    assert again["leaves"][0] is inputs["leaves"][0]
    assert again["out_graph"][0] is inputs["out_graph"][0]
    spec.run(again, {})
    assert torch.isfinite(again["dq"]).all()


def test_the_code_path_follows_the_card() -> None:
    tensor = torch.empty(1)
    with pretend(80):
        assert not has_tma(tensor)
    with pretend(100):
        assert has_tma(tensor)
    assert n_sms(tensor) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_no_bench() -> None:
    assert find_device() is None
    assert open_bench() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_checker_says_so_without_a_gpu_or_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-m", "roofplan.kernels.check"], capture_output=True, text=True, timeout=120, env={"PATH": ""})
    assert done.returncode == 2
    assert done.stderr.strip() == "no CUDA GPU found; set TRITON_INTERPRET=1 to check in the interpreter"


class FakeEvent:
    """A CUDA event on the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at_s = 0.0

    def record(self) -> None:
        self.at_s = time.perf_counter()

    def elapsed_time(self, later: FakeEvent) -> float:
        return 1e3 * (later.at_s - self.at_s)


class FakeGraph:
    """A captured graph that remembers nothing: replaying it only counts."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> GpuBench:
    """The bench with CUDA's clockwork replaced by the host's, measuring torch on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Event": FakeEvent, "CUDAGraph": FakeGraph, "graph": lambda g: nullcontext(), "stream": lambda s: nullcontext(),
        "Stream": lambda: stream, "current_stream": lambda: stream, "synchronize": lambda: None, "empty_cache": lambda: None,
        "mem_get_info": lambda: (2**30, 2**30),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("roofplan.kernels.bench.MODE_S", 0.002)
    device = Device(
        name="Fake", uuid="", capability=90, n_sms=4, n_gpus=4, hbm_bytes=2**33, l2_bytes=2**20, driver="1", torch_version="2",
        triton_version="3",
    )  # fmt: skip
    return GpuBench(device, where="cpu")


def test_a_point_gives_a_row_per_mode_with_all_its_columns(bench: GpuBench) -> None:
    rows = bench.measure(point_of(all_specs()["device_copy"], {"num_bytes": 4096}, "int8"))
    assert [row["mode"] for row in rows] == ["graph", "eager"]
    for row in rows:
        assert row["family"] == "copy"
        assert row["num_bytes"] == 4096
        assert row["framework_version"] == "2"
        assert row["n_input_sets"] == MAX_SETS
        assert int(row["n_samples"]) >= 7
        assert float(row["p10_us"]) <= float(row["latency_us"]) <= float(row["p90_us"])
    assert FakeGraph.replays >= 8
    assert 0.02 < float(rows[1]["latency_us"]) < 1e4


def test_long_calls_are_not_measured_eagerly_too(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofplan.kernels.bench.EAGER_BELOW_S", 0.0)
    rows = bench.measure(point_of(all_specs()["device_copy"], {"num_bytes": 4096}, "int8"))
    assert [row["mode"] for row in rows] == ["graph"]


def spec_that(run: Callable[[Inputs, Config], None]) -> KernelSpec:
    configs = ({"BLOCK": 64}, {"BLOCK": 32})
    return replace(all_specs()["device_copy"], name="odd", run=run, configs=lambda shape, dtype: configs)


def measure(bench: GpuBench, monkeypatch: pytest.MonkeyPatch, run: Callable[[Inputs, Config], None]) -> list[Row]:
    spec = spec_that(run)
    monkeypatch.setattr("roofplan.kernels.bench.all_specs", lambda: {"odd": spec})
    return bench.measure(point_of(spec, {"num_bytes": 64}, "int8"))


def test_the_fastest_configuration_that_fits_is_used(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfResources(Exception):
        pass

    def run(inputs: Inputs, config: Config) -> None:
        if config["BLOCK"] == 64:
            raise OutOfResources("shared memory")

    assert {row["config"] for row in measure(bench, monkeypatch, run)} == {"BLOCK=32"}

    def never(inputs: Inputs, config: Config) -> None:
        raise OutOfResources("shared memory")

    with pytest.raises(MeasureFailed, match="no launch configuration fits this card: shared memory"):
        measure(bench, monkeypatch, never)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("x"), MeasureFailed), (RuntimeError("not supported"), MeasureFailed), (ValueError(), MeasureFailed),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
    ],
)  # fmt: skip
def test_a_failure_is_one_point_or_the_whole_device(
    bench: GpuBench, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    def run(inputs: Inputs, config: Config) -> None:
        raise error

    with pytest.raises(kind):
        measure(bench, monkeypatch, run)


def test_what_a_bench_offers(bench: GpuBench) -> None:
    assert [p.kernel for p in bench.ceilings()] == ["device_copy", "cublas_gemm"]
    assert [p.shape["num_gpus"] for p in bench.collectives()] == [2, 4]
    assert 1000 < len(bench.points()) < 4000
    assert bench.describe()["device_name"] == "Fake"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_no_time_beats_the_copy_ceiling_by_much() -> None:
    bench = open_bench()
    assert bench is not None
    copy, matmul = bench.ceilings()
    rows = bench.measure(copy)
    assert rows[0]["mode"] == "graph"
    assert float(rows[0]["p10_us"]) <= float(rows[0]["latency_us"]) <= float(rows[0]["p90_us"])
    assert 1e11 < copy.moved_bytes / (1e-6 * float(rows[0]["latency_us"])) < 2e13
    assert 1e12 < matmul.flops / (1e-6 * float(bench.measure(matmul)[0]["latency_us"])) < 1e16
