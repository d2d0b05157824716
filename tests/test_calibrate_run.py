"""A calibration run against a stand-in for the GPU: order, budget, resumption after a kill, failures, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from roofplan.calibrate.run import Journal, calibrate_run, find_bench, gpu_name, measured_ceilings
from roofplan.calibrate.run_cli import run_command
from roofplan.kernels.point import DeviceLost, MeasureFailed, Point, Row
from roofplan.planner.command import run as run_program
from roofplan.scenarios.errors import BadFile, BadInput, CheckFailed

pytest.importorskip("pyarrow", reason="the table is written with pyarrow (extra calibrate)")

FLOPS_PER_S, BYTES_PER_S = 5e14, 2e12


class Clock:
    """Time that only the bench moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeBench:
    """Answers with a roofline at 60 % of its peaks; each point takes ``point_s`` of the clock."""

    def __init__(self, clock: Clock, point_s: float = 1.0, name: str = "NVIDIA H200") -> None:
        self.clock, self.point_s, self.name = clock, point_s, name
        self.asked: list[str] = []
        self.fail_on = self.die_on = self.lose_on = ""

    def describe(self) -> dict[str, str | int]:
        return {"device_name": self.name, "device_uuid": "u", "driver": "570.1", "torch": "2.13.0", "triton": "3.7.1", "n_gpus": 2}

    def ceilings(self) -> list[Point]:
        return [point("device_copy", n=2**28), point("cublas_gemm", m=8192, n=8192)]

    def collectives(self) -> list[Point]:
        return [point("torch_nccl", num_gpus=2)]

    def points(self) -> list[Point]:
        gemms = [point("gemm", m=2**i, n=2**j) for i in range(8) for j in range(6, 12)]
        return gemms + [point("device_copy", n=2**i) for i in range(10, 28)]

    def measure(self, p: Point) -> list[Row]:
        self.asked.append(p.key)
        self.clock.now_s += self.point_s
        if p.key == self.fail_on:
            raise MeasureFailed("too large")
        if p.key == self.lose_on:
            raise DeviceLost("illegal memory access")
        if p.key == self.die_on:
            raise KeyboardInterrupt
        latency_us = 1e6 * max(p.flops / FLOPS_PER_S, p.moved_bytes / BYTES_PER_S, 1e-5) / 0.6
        row: Row = {"framework": "torch", "framework_version": "2.13.0", "kernel": p.kernel, "family": p.family, "dtype": p.dtype}
        times: Row = {"latency_us": latency_us, "p10_us": 0.9 * latency_us, "p90_us": 1.1 * latency_us, "mode": "graph", "n_samples": 9}
        return [{**row, **p.shape, **times, "clock_mhz": 1700.0}]


def point(kernel: str, **shape: int) -> Point:
    flops = 2.0 * shape["m"] * shape["n"] * 4096 if "m" in shape else 0.0
    return Point(
        kernel=kernel, family="gemm" if "m" in shape else "copy", framework="torch", dtype="bfloat16", shape=shape, flops=flops,
        moved_bytes=2.0 * shape.get("n", 0),
    )  # fmt: skip


def measured(tmp_path: Path, minutes: float, bench: FakeBench, name: str = "h200.parquet") -> Journal:
    return calibrate_run(tmp_path / name, minutes, bench, clock=bench.clock)


def test_ceilings_first_then_collectives_then_the_grid_until_the_time_is_spent(tmp_path: Path) -> None:
    bench = FakeBench(Clock())
    journal = measured(tmp_path, 1.0, bench)
    assert bench.asked[:3] == [p.key for p in [*bench.ceilings(), *bench.collectives()]]
    assert len(bench.asked) == len(set(bench.asked))
    assert 50 <= journal.spent_s <= 60
    assert bench.clock.now_s - 100 == pytest.approx(journal.spent_s)


def test_the_floors_come_from_the_measured_ceilings(tmp_path: Path) -> None:
    bench = FakeBench(Clock())
    journal = measured(tmp_path, 0.2, bench)
    found = measured_ceilings(journal, bench.ceilings())
    assert found.flops_per_s == pytest.approx(0.6 * FLOPS_PER_S)
    assert found.hbm_bytes_per_s == pytest.approx(0.6 * BYTES_PER_S)


def test_the_table_has_the_columns_of_a_measurement_and_its_provenance(tmp_path: Path) -> None:
    import pandas
    import pyarrow.parquet

    measured(tmp_path, 0.5, FakeBench(Clock()))
    frame = pandas.read_parquet(tmp_path / "h200.parquet")
    wanted = "gpu device_name framework framework_version kernel family dtype m n latency_us p10_us p90_us mode n_samples clock_mhz driver"
    assert {*wanted.split(), "timestamp"} <= set(frame.columns)
    assert set(frame["gpu"]) == {"h200"}
    gemm = frame[frame["family"] == "gemm"]
    assert gemm["m"].notna().all()
    assert (gemm["p10_us"] < gemm["latency_us"]).all()
    assert str(frame["m"].dtype) == "Int64"
    assert frame.loc[frame["kernel"] == "device_copy", "m"].isna().all()
    kept = json.loads(pyarrow.parquet.read_schema(tmp_path / "h200.parquet").metadata[b"roofplan"])
    assert kept["driver"] == "570.1"
    assert kept["torch"] == "2.13.0"
    assert kept["program"].startswith("roofplan ")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("cut", [0, 1, 17])
def test_killed_in_flight_it_goes_on_and_loses_only_that_point(tmp_path: Path, cut: int) -> None:
    whole = FakeBench(Clock())
    measured(tmp_path, 0.6, whole, "whole.parquet")
    first = FakeBench(Clock())
    first.die_on = whole.asked[20]
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, 0.6, first)
    path = tmp_path / "h200.journal.jsonl"
    if cut:
        with path.open("a", encoding="utf-8") as file:
            file.write('{"end": "half-written line'[:cut])
    second = FakeBench(Clock())
    journal = measured(tmp_path, 0.6, second)
    assert len(first.asked) == 21
    assert second.asked[0] == first.die_on
    assert not set(first.asked[:20]) & set(second.asked)
    assert list(journal.done) == list(dict.fromkeys(first.asked[:20] + second.asked))
    assert journal.spent_s == pytest.approx(sum(journal.walls_s.values()))
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_resumed_run_makes_the_same_choices_as_an_unbroken_one(tmp_path: Path) -> None:
    whole, first, second = FakeBench(Clock()), FakeBench(Clock()), FakeBench(Clock())
    measured(tmp_path, 0.7, whole, "whole.parquet")
    first.die_on = whole.asked[12]
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, 0.7, first)
    measured(tmp_path, 0.7, second)
    assert (first.asked[:12] + second.asked)[: len(whole.asked)] == whole.asked


def test_more_minutes_later_add_points_to_the_same_table(tmp_path: Path) -> None:
    measured(tmp_path, 0.3, FakeBench(Clock()))
    again = FakeBench(Clock())
    journal = measured(tmp_path, 0.3, again)
    spent = journal.spent_s
    assert len(again.asked) <= 1
    more = measured(tmp_path, 0.9, FakeBench(Clock()))
    assert spent < more.spent_s <= 54
    assert len(more.done) > len(journal.done)


def test_a_point_that_kills_two_runs_is_left_out(tmp_path: Path) -> None:
    probe = FakeBench(Clock())
    measured(tmp_path, 0.4, probe, "probe.parquet")
    deadly = probe.asked[7]
    for _ in range(2):
        bench = FakeBench(Clock())
        bench.die_on = deadly
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path, 0.4, bench)
    last = FakeBench(Clock())
    last.die_on = deadly
    journal = measured(tmp_path, 0.4, last)
    assert deadly not in last.asked
    assert deadly not in journal.done


def test_a_point_that_fails_is_noted_with_its_reason_and_not_tried_again(tmp_path: Path) -> None:
    bench = FakeBench(Clock())
    bench.fail_on = point("device_copy", n=2**28).key
    journal = measured(tmp_path, 0.4, bench)
    assert journal.failed == {bench.fail_on: "too large"}
    assert bench.fail_on not in journal.done
    again = FakeBench(Clock())
    measured(tmp_path, 0.5, again)
    assert bench.fail_on not in again.asked


@pytest.mark.parametrize("latency_us", [0.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latency_us: float) -> None:
    bench = FakeBench(Clock())
    real, odd = bench.measure, bench.ceilings()[0].key
    monkeypatch.setattr(bench, "measure", lambda p: [{**row, **({"latency_us": latency_us} if p.key == odd else {})} for row in real(p)])
    assert measured(tmp_path, 0.2, bench).failed == {odd: "no time above zero was measured"}


def test_a_lost_gpu_ends_the_run_with_its_rows_written(tmp_path: Path) -> None:
    probe = FakeBench(Clock())
    measured(tmp_path, 0.4, probe, "probe.parquet")
    bench = FakeBench(Clock())
    bench.lose_on = probe.asked[9]
    with pytest.raises(CheckFailed, match=r"stopped answering \(illegal memory access\); 9 rows"):
        measured(tmp_path, 0.4, bench)
    assert (tmp_path / "h200.parquet").exists()


def test_a_journal_of_another_card_is_refused(tmp_path: Path) -> None:
    measured(tmp_path, 0.2, FakeBench(Clock()))
    with pytest.raises(BadInput, match=r"device_name 'NVIDIA H200' then, 'NVIDIA B200' now; delete it or give another --out"):
        measured(tmp_path, 0.2, FakeBench(Clock(), name="NVIDIA B200"))


@pytest.mark.parametrize("text", ["not json\n", "[1]\n", '{"x": 1}\n', '{"header": {}}\n{"end": "a"}\n', '{"header": {}}\n7\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "h200.journal.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises((BadFile, BadInput), match=r"delete it or give another --out"):
        measured(tmp_path, 0.2, FakeBench(Clock()))
    assert (tmp_path / "h200.journal.jsonl").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), 1e9])
def test_a_senseless_budget_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(BadInput, match=r"is not between 0\.1 and 1440"):
        measured(tmp_path, minutes, FakeBench(Clock()))
    assert list(tmp_path.iterdir()) == []


def test_out_must_be_parquet(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"must end in \.parquet"):
        measured(tmp_path, 1.0, FakeBench(Clock()), "h200.csv")


def test_names_of_cards() -> None:
    assert gpu_name("NVIDIA H200") == "h200"
    assert gpu_name("NVIDIA B200") == "b200"
    assert gpu_name("NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert gpu_name("Frobnicator 9000 Ti") == "frobnicator-9000-ti"


def test_without_a_gpu_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Holds on machines without torch (it is missing) and with torch but no GPU (that is missing)."""
    try:
        find_bench()
    except BadInput as error:
        assert "no CUDA GPU found" in str(error) or "needs torch and triton" in str(error)
    else:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as done:
        run_program(run_command, "run", ["--out", str(tmp_path / "x.parquet")])
    assert done.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_the_command_measures_and_says_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FakeBench(Clock(), point_s=0.0)
    monkeypatch.setattr("roofplan.calibrate.run_cli.find_bench", lambda: bench)
    done = CliRunner().invoke(run_command, ["--minutes", "0.1", "--out", str(tmp_path / "x.parquet")])
    assert done.exit_code == 0, done.stderr
    assert f"{len(bench.asked)} rows of {len(bench.asked)} points in" in done.stderr
