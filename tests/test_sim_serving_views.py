"""What people see of a serving run: tables by request and time, the trace for Perfetto, and the HTML page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.sim import serve_cli
from roofplan.sim.arrivals import poisson
from roofplan.sim.serve_result import ServeResult
from roofplan.sim.serving import simulate_serving
from roofplan.sim.serving_frames import csv_text, frame, levels_over_time, over_time, request_columns, step_columns
from roofplan.sim.serving_page import levels_figure, serving_page
from roofplan.sim.serving_trace import serving_trace
from roofplan.sim.step_log import COLUMNS, StepLog


@pytest.fixture(scope="module")
def result() -> ServeResult:
    n = 60
    work = ServeWorkload(arrival_s=poisson(n, 4.0), prompt_tokens=np.full(n, 700), output_tokens=np.full(n, 40))
    cluster = registry.cluster("h100-sxm", 2)
    return simulate_serving(registry.model("llama3-8b"), cluster, EnginePlan(), work, log=True)


def test_requests_table_adds_up(result: ServeResult) -> None:
    columns = request_columns(result)
    assert np.allclose(columns["e2e_s"], columns["ttft_s"] + columns["tpot_s"] * (columns["output_tokens"] - 1))
    rows = csv_text(columns).splitlines()
    assert len(rows) == 61
    assert rows[0].startswith("request,arrival_s,first_token_s,finish_s")
    table = frame(columns)
    assert list(table["prompt_tokens"].unique()) == [700]


def test_load_over_time_conserves_requests(result: ServeResult) -> None:
    bins = over_time(result, 50)
    width = result.end_s / 50
    assert bins["arrivals_per_s"].sum() * width == pytest.approx(60)
    assert bins["finished_per_s"].sum() * width == pytest.approx(60)
    assert bins["n_in_system"][-1] == 0
    assert bins["n_in_system"].min() >= 0
    with pytest.raises(BadInput, match="n_bins=0 must be at least 1"):
        over_time(result, 0)


def test_time_average_of_the_system_is_littles_law(result: ServeResult) -> None:
    bins = over_time(result, 20_000)
    e2e = request_columns(result)["e2e_s"]
    assert bins["n_in_system"].mean() == pytest.approx(e2e.sum() / result.end_s, rel=0.02)


def test_steps_table_carries_every_token(result: ServeResult) -> None:
    steps = step_columns(result.logs)
    assert set(steps["replica"]) == {"serve 0", "serve 1"}
    assert steps["prompt_tokens"].sum() == 60 * 700
    assert (steps["tokens"] - steps["prompt_tokens"]).sum() == 60 * 39
    assert (steps["end_s"] > steps["start_s"]).all()
    assert (steps["end_s"] - steps["start_s"]).sum() == pytest.approx(result.busy_s)
    levels = levels_over_time(result.logs)
    assert levels["free_blocks"].max() <= 2 * result.memory.kv_blocks
    for made in (step_columns, levels_over_time):
        with pytest.raises(BadInput, match="kept no log of its steps"):
            made({})


def test_trace_holds_the_window(result: ServeResult) -> None:
    trace = serving_trace(result, result.logs, (1.0, 3.0))
    events = trace["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert spans
    assert all(e["ts"] < 3e6 and e["ts"] + e["dur"] > 1e6 for e in spans)
    whole = [e for e in serving_trace(result, result.logs)["traceEvents"] if e["ph"] == "X"]
    assert sum(e["dur"] for e in whole) == pytest.approx(result.busy_s * 1e6)
    begins = [e for e in events if e["ph"] == "b"]
    ends = [e for e in events if e["ph"] == "e"]
    assert len(begins) == len(ends) > 0
    assert {e["ph"] for e in events} >= {"M", "X", "C", "b", "e"}
    json.dumps(trace, allow_nan=False)
    with pytest.raises(BadInput, match=r"window=3\.\.1 s must start at 0 or later and end after its start"):
        serving_trace(result, result.logs, (3.0, 1.0))


ASK = ["--model", "llama3-8b", "--gpus", "2", "--isl", "700", "--osl", "40", "--rate", "4", "--requests", "60"]


def command(*words: str) -> int:
    code = serve_cli.simulate.main(args=[*ASK, *words], standalone_mode=False)
    return int(code or 0)


def test_command_writes_every_view(tmp_path: Path) -> None:
    html, perfetto, csv, out = (tmp_path / name for name in ("run.html", "run.json", "run.csv", "out.json"))
    pytest.importorskip("plotly", reason="the report extra is not installed")
    words = [f"--html={html}", f"--perfetto={perfetto}", "--window=0s..5s", f"--csv={csv}", f"--json={out}"]
    assert command(*words) == 0
    page = html.read_text(encoding="utf-8")
    assert "Latency" in page
    assert "Queue and KV cache" in page
    assert "cdn" not in page.split("<script", maxsplit=1)[0]
    assert len(csv.read_text(encoding="utf-8").splitlines()) == 61
    assert json.loads(perfetto.read_text(encoding="utf-8"))["traceEvents"]
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["pools"][0]["n_replicas"] == 2
    assert data["gpu_s"] == pytest.approx(2 * data["simulated_s"])


def test_a_closed_loop_keeps_its_clients_busy(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--model", "llama3-8b", "--isl", "700", "--osl", "40", "--concurrency", "4", "--requests", "60", f"--json={out}"]
    assert not serve_cli.simulate.main(args=words, standalone_mode=False)
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["requests_per_s"] * data["e2e_s"]["mean"] == pytest.approx(4, rel=0.05)  # Little: clients = rate x time in the system


def test_bursts_arrive_together(tmp_path: Path) -> None:
    csv = tmp_path / "run.csv"
    words = ["--model", "llama3-8b", "--isl", "700", "--osl", "4", "--burst", "16:10s", "--requests", "40", f"--csv={csv}"]
    assert not serve_cli.simulate.main(args=words, standalone_mode=False)
    at = [float(row.split(",")[1]) for row in csv.read_text(encoding="utf-8").splitlines()[1:]]
    assert at == [0.0] * 16 + [10.0] * 16 + [20.0] * 8


def test_page_says_when_the_system_is_overloaded(result: ServeResult) -> None:
    pytest.importorskip("plotly", reason="the report extra is not installed")
    zero = dict.fromkeys(("mean", "p50"), 0.001)
    out = {
        "model": "m<1>", "n_gpus": 2, "gpu": "g", "saturated": True, "saturation": {"growth": 0.5}, "n_requests": 60, "n_rejected": 0,
        "ttft_s": zero, "tpot_s": zero, "itl_s": zero, "e2e_s": zero, "output_tokens_per_s": 1.0, "goodput_per_s": 1.0, "preemptions": 0,
        "cache_hit_frac": 0.0, "busy_frac": 1.0, "cost_usd_per_mtoken": 1.0, "energy_j_per_token_at_tdp": 1.0, "kv_blocks": 10,
        "pools": [{"name": "mixed", "n_replicas": 2, "gpus_each": 1, "kv_blocks": 10}], "slo": {"ttft_s": 2.0, "tpot_s": None},
        "trace": "made up", "plan": {"engine": "vllm"}, "seed": 3, "notes": ["one was turned away"],
    }  # fmt: skip
    page = serving_page(out, result, {})
    assert "Overloaded: TTFT grows by 0.50 s every second" in page
    assert "m&lt;1&gt;" in page
    assert "<p>60 requests (made up); 2 x mixed on 1 GPUs; vllm; TTFT 2 s; seed 3.</p><p>one was turned away.</p>" in page
    assert "Queue and KV cache" not in page
    assert serving_page(out, result, {}) == page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--window", "5"], "--window '5' is not FROM..TO, like 10s..20s"),
        (["--prefill-tp", "2"], "--prefill-tp is the width of replicas that only prefill; say how many with --prefill"),
        (["--tp", "4"], "gpus=2 is not a whole number of replicas of 4 GPUs"),
        (["--prefill", "2"], "prefill=2 replicas of 1 GPUs leave 0 of 2 GPUs: at least one replica of 1 must decode"),
        (["--kv-tier", "host:1GB"], "--kv-tier 'host:1GB' is not NAME:CAPACITY:RATE"),
        (["--speculation", "luck:1:1"], "'luck' is not known; legal: chain, tree, mtp"),
        (["--autoscale", "1:2:8", "--prefill", "1"], "autoscaling covers replicas that do both prefill and decode"),
        (["--burst", "4:1s"], "--burst and --rate both say when requests come; give one of them"),
        (["--concurrency", "4"], "--rate and --concurrency both say when requests come"),
        (["--think", "2s"], "--think is the pause of clients that wait for their answers"),
        (["--html", "/nowhere/at/all.html"], "cannot be written"),
    ],
)
def test_mistakes_get_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_share_of_kv_blocks_counts_each_pools_own() -> None:
    pytest.importorskip("plotly", reason="the report extra is not installed")
    logs = {"prefill 0": StepLog(), "decode 0": StepLog()}
    for log, free in zip(logs.values(), (100, 10), strict=True):
        log.add(*(free if name == "free_blocks" else 10 * (name == "end_ps") for name in COLUMNS))
    drawn = levels_figure(logs, {"prefill": 100, "decode": 20})
    assert max(drawn.data[2].y) == pytest.approx(10 / 120)
