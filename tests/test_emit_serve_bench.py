"""bench/: what `vllm bench serve` is called with, the predicted curve, and the comparison with what it measured."""

from __future__ import annotations

import csv
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_jobs import calls_of, files_of, flags

CURVE = [
    {"rate_per_s": 2.0, "ttft_s_mean": 0.1, "tpot_s_mean": 0.010, "output_tokens_per_s": 1000.0},
    {"rate_per_s": 4.0, "ttft_s_mean": 0.2, "tpot_s_mean": 0.012, "ttft_s_p99": math.inf},
]


def bench_files(**parts: Any) -> dict[str, str]:
    files = files_of(tp=1, **parts)
    return {name: text for name, text in files.items() if name.startswith("bench/")}


def test_one_run_a_rate(tmp_path: Path) -> None:
    """Rates of the curve, prompts for two minutes within bounds, the promises as goodput; then compare.py."""
    files = bench_files(predicted={"curve": CURVE}, slo={"ttft_s": 2.0, "tpot_s": 0.03}, shared_prefix_tokens=1000)
    *runs, last = calls_of("bench/bench.sh", files, tmp_path)
    assert last == ["python3", "compare.py"]
    assert [run[:3] for run in runs] == [["vllm", "bench", "serve"]] * 2
    found = [flags(run) for run in runs]
    assert [(f["request-rate"], f["num-prompts"], f["result-filename"]) for f in found] == [
        ("2", "240", "rate-2.json"),
        ("4", "480", "rate-4.json"),
    ]
    first = found[0]
    assert first["goodput"] == ["ttft:2000", "tpot:30"]
    assert (first["random-input-len"], first["random-prefix-len"], first["random-output-len"]) == ("3000", "1000", "500")
    assert (first["tokenizer"], first["model"], first["base-url"]) == ("meta-llama/Llama-3.1-8B", "llama3.1-8b", "http://localhost:8000")
    assert (first["ignore-eos"], first["save-result"], first["result-dir"]) == (True, True, "measured")


def test_rates_may_be_given(tmp_path: Path) -> None:
    *runs, _ = calls_of("bench/bench.sh", bench_files(), tmp_path, "0.01", "1000", BASE_URL="http://there:1")
    found = [flags(run) for run in runs]
    assert [(f["request-rate"], f["num-prompts"]) for f in found] == [("0.01", "64"), ("1000", "4000")]
    assert "goodput" not in found[0]
    run, _ = calls_of("bench/bench.sh", bench_files(), tmp_path, "1000", PROMPTS="70")
    assert flags(run)["num-prompts"] == "70"
    assert found[0]["base-url"] == "http://there:1"


def test_predicted_curve() -> None:
    predicted = json.loads(
        bench_files(predicted={"curve": CURVE, "error_frac": 0.1}, slo={"ttft_s": 2.0, "tpot_s": math.inf})["bench/predicted.json"]
    )
    assert predicted["curve"] == [CURVE[0], {"rate_per_s": 4.0, "ttft_s_mean": 0.2, "tpot_s_mean": 0.012}]
    assert predicted["slo"] == {"ttft_s": 2.0}
    assert predicted["workload"] == {"prompt_tokens": 4000, "output_tokens": 500, "shared_prefix_tokens": 0, "arrivals": "poisson"}
    summary = json.loads(bench_files(predicted={"goodput_per_s": 3.5, "ttft_s": 0.3, "tpot_s": 0.01})["bench/predicted.json"])
    assert summary["curve"] == [{"rate_per_s": 3.5, "ttft_s_mean": 0.3, "tpot_s_mean": 0.01}]


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(folder / "compare.py"), *arguments], text=True, capture_output=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in bench_files(predicted={"curve": CURVE, "error_frac": 0.1}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "bench"


def measured(folder: Path, rate: float, **metrics: float) -> None:
    (folder / "measured").mkdir(exist_ok=True)
    (folder / "measured" / f"rate-{rate:g}.json").write_text(json.dumps({"request_rate": rate, **metrics}))


def test_comparison(folder: Path) -> None:
    """Seconds against milliseconds, error of the prediction over the measured; a rate between two is interpolated, one outside left out."""
    measured(folder, 2.0, mean_ttft_ms=125.0, mean_tpot_ms=10.0, output_throughput=800.0)
    measured(folder, 3.0, mean_ttft_ms=100.0, mean_tpot_ms=11.0)
    measured(folder, 9.0, mean_ttft_ms=100.0)
    done = compare(folder)
    assert done.returncode == 0, done.stderr
    with (folder / "comparison.csv").open() as file:
        rows = {(r["rate_per_s"], r["metric"]): float(r["error_frac"]) for r in csv.DictReader(file)}
    assert rows == pytest.approx(
        {
            ("2.0", "ttft_s_mean"): -0.2, ("2.0", "tpot_s_mean"): 0.0, ("2.0", "output_tokens_per_s"): 0.25,
            ("3.0", "ttft_s_mean"): 0.5, ("3.0", "tpot_s_mean"): 0.0,
        }, abs=1e-9
    )  # fmt: skip
    assert "-20.0%" in done.stdout
    assert [runpy.run_path(str(folder / "compare.py"))["number"](value) for value in (0.1234567, 123456.7)] == ["0.12346", "123,457"]
    assert "expected error of the prediction: 10%" in done.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"request_rate": "fast"}', "{}"])
def test_a_file_that_is_no_result_is_named(text: str, folder: Path) -> None:
    bad = folder / "bad.json"
    bad.write_text(text)
    done = compare(folder, str(bad))
    assert done.returncode == 2
    assert "bad.json: not a result of vllm bench serve" in done.stderr
    assert not (folder / "comparison.csv").exists()


def test_nothing_measured(folder: Path) -> None:
    done = compare(folder)
    assert (done.returncode, done.stderr) == (2, "nothing measured yet: run bench.sh first\n")
