"""``plan --task serve`` as a command: JSON, table, exit codes, every refusal, and the folder it writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from roofplan.planner.cli_serve import plan_serve, read_ask
from roofplan.scenarios.errors import BadInput, UnknownName


def flags(**changes) -> dict[str, object]:
    base = {"model": "llama3.1-8b", "gpu": "h200", "n_gpus": 2, "isl": "2000", "osl": "200", "ttft": "2s", "tpot": "30ms"}
    return {name: value for name, value in (base | changes).items() if value is not None}


def trace_file(folder, n: int = 60) -> str:
    path = folder / "mooncake.jsonl"
    rows = [{"timestamp": 500 * i, "input_length": 1024, "output_length": 20, "hash_ids": [i % 5, 100 + i % 7]} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_holds_the_whole_contract(tmp_path):
    target = tmp_path / "serve.json"
    assert plan_serve(flags(rate="1"), str(target)) == 0
    data = json.loads(target.read_text())
    assert set(data) >= {"scenario", "plans", "rejected", "binding_limit", "solver", "provenance", "why", "notes"}
    best = data["plans"][0]
    assert best["rank"] == 1
    assert data["scenario"] | {"task": "serve", "model": "llama3.1-8b", "isl_tokens": 2000, "rate_per_s": 1.0} == data["scenario"]
    assert {"layout", "pools", "goodput_per_s", "ttft_s", "tpot_s", "output_tokens_per_s_per_gpu", "memory", "cost_usd_per_mtoken",
            "error_frac", "bottleneck"} <= set(best)  # fmt: skip
    assert set(data["solver"]) >= {"name", "status", "gap_frac", "wall_s", "n_candidates", "proved"}
    assert 0 < best["error_frac"] < 1
    memory = best["memory"]
    parts = ("weights", "activations", "context", "kv")
    assert memory["total_bytes"] == pytest.approx(sum(memory[f"{name}_bytes"] for name in parts))
    assert memory["total_bytes"] <= memory["limit_bytes"]
    gpus = best["layout"]["tp"] * best["layout"]["pp"] * best["layout"]["dp"] * best["layout"]["cp"]
    mixed = next(p for p in data["plans"] if "mixed" in p["pools"])
    assert mixed["n_gpus_for_rate"] == mixed["layout"]["tp"]
    assert best["n_gpus"] >= gpus
    assert len(data["why"]) == len(data["plans"])


def test_the_table_fits_eighty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert plan_serve(flags(rate="1"), None) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("TTFT", "tok/s/GPU", "rank 2", "Binding limit", "gap", "Good to about", "1 requests/s need at least 1 GPUs"):
        assert word in out


def test_json_to_standard_output_prints_nothing_else(capsys):
    assert plan_serve(flags(), "-") == 0
    assert json.loads(capsys.readouterr().out)["plans"]


def test_a_rate_nobody_carries_is_exit_1_and_says_what_would(capsys):
    assert plan_serve(flags(rate="100"), None) == 1
    out = capsys.readouterr().out
    assert "No plan fits: rate" in out
    assert "--gpus" in out
    assert "--rate" in out


def test_a_promise_nobody_keeps_names_the_nearest_that_is_kept(tmp_path, capsys):
    target = tmp_path / "serve.json"
    assert plan_serve(flags(n_gpus=1, ttft="40ms", tpot=None), str(target)) == 1
    data = json.loads(target.read_text())
    assert data["plans"] == []
    assert data["binding_limit"] == "ttft"
    looser = next(line for line in data["nearest"] if line.startswith("--ttft "))
    promise = looser.split()[1]
    assert plan_serve(flags(n_gpus=1, ttft=promise, tpot=None), str(target)) == 0
    capsys.readouterr()


def test_a_model_too_large_names_gpus_that_hold_it(capsys):
    assert plan_serve(flags(model="llama3.1-70b", n_gpus=1), None) == 1
    out = capsys.readouterr().out
    assert "memory" in out
    assert "--gpus 2 fits" in out


def test_without_gpus_the_fewest_for_the_rate_are_found(capsys):
    few = flags(rate="10")
    del few["n_gpus"]
    assert read_ask(few).objective == "cost"
    assert plan_serve(few, "-") == 0
    data = json.loads(capsys.readouterr().out)
    winner = data["plans"][0]
    assert winner["goodput_per_s"] >= 10
    assert winner["n_gpus"] == data["n_gpus_needed"] < 8


def test_a_trace_is_replayed_at_its_own_rate_and_retimed_by_rate(tmp_path, capsys):
    path = trace_file(tmp_path)
    own = flags(trace=path, isl=None, osl=None)
    asked = read_ask(own)
    assert asked.rate_per_s == pytest.approx(2.0)
    assert asked.keep_arrivals
    assert asked.prompt_tokens == 1024
    assert not read_ask(own | {"rate": "5"}).keep_arrivals
    assert plan_serve(own, "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plans"][0]["layout"]["prefix_cache"]
    assert data["plans"][0]["cache_hit_frac"] > 0.5
    assert data["scenario"]["n_requests"] == 60


def test_a_million_tokens_say_that_positions_are_stretched(capsys):
    long = flags(n_gpus=8, isl="1M", osl="1K", ttft="200s", tpot=None, rope_scaling="yarn:16")
    assert plan_serve(long, "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["scenario"]["isl_tokens"] == 1 << 20
    assert data["scenario"]["rope_scaling"] == {"kind": "yarn", "factor": 16.0, "original_max_tokens": 131_072}
    assert any("stretched 16 times" in note for note in data["notes"])
    layouts = [p["layout"] for p in data["plans"]]
    assert all(x["tp"] * x["cp"] > 1 for x in layouts)
    assert any(x["cp"] > 1 for x in layouts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "--task serve needs --model"),
        ({"isl": None}, "--task serve needs --isl, or --trace FILE"),
        ({"osl": None}, "--task serve needs --osl"),
        ({"n_gpus": None}, "--task serve needs --gpus, or --rate to find the fewest"),
        ({"trace": "x.csv"}, "--trace and --isl/--osl both say what the requests are"),
        ({"trace": "x.csv", "isl": None, "osl": None}, "x.csv: not a file"),
        ({"seq_tokens": 4096}, "--seq is for training and is not used by plan --task serve; give --isl and --osl instead"),
        ({"micro_batch": 1}, "--micro-batch is for training .* drop it"),
        ({"scenario": "x.toml"}, "--scenario is for training"),
        ({"rate": "fast"}, "--rate fast must be a number of requests a second, from 0.001 to 1,000,000"),
        ({"rate": "0"}, "--rate 0 must be"),
        ({"concurrency": "1.5"}, "--concurrency 1.5 must be a whole number of clients"),
        ({"rate": "1", "concurrency": "4"}, "--rate and --concurrency both say how requests arrive"),
        ({"ttft": "2"}, "unit"),
        ({"allow": ("lossy:1",)}, "--allow lossy:1 has no use with --task serve"),
        ({"objective": "max-seq"}, "objective='max-seq' is not for --task serve"),
        ({"speculation": "mtp:1"}, "mtp:1"),
        ({"rope_scaling": "yarn"}, "is not KIND:FACTOR"),
        ({"isl": "1M"}, "over the 131,072 that llama3.1-8b was made for; .*--rope-scaling yarn:"),
    ],
)
def test_flags_that_cannot_be_used(changes, message):
    asked = {name: value for name, value in (flags() | changes).items() if value is not None}
    with pytest.raises(BadInput, match=message):
        plan_serve(asked, None)


def test_an_unknown_engine_is_named():
    with pytest.raises(UnknownName, match="serving engine"):
        plan_serve(flags(engine="nosuch"), None)


def test_price_and_host_memory_are_taken_from_the_flags():
    asked = read_ask(flags(price_usd_per_h=1.5, host_ram_bytes=1e12))
    assert asked.cluster.on_demand_usd_per_h == 1.5
    assert asked.cluster.host_ram_bytes == 1e12


def test_out_writes_a_folder_that_runs_the_winner(tmp_path, capsys):
    folder = tmp_path / "run"
    assert plan_serve(flags(rate="1", out=str(folder)), None) == 0
    answer = json.loads((folder / "answer.json").read_text())
    assert answer["plans"][0]["rank"] == 1
    assert (folder / "README.md").exists()
    assert (folder / "vllm" / "launch.sh").exists()
    rates = [row["rate_per_s"] for row in json.loads((folder / "bench" / "predicted.json").read_text())["curve"]]
    assert rates == sorted(rates)
    assert "Wrote" in capsys.readouterr().out
    assert math.isfinite(np.mean(rates))


def test_an_out_folder_with_other_files_is_refused_before_anything_is_printed(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="not an earlier plan's"):
        plan_serve(flags(rate="1", out=str(tmp_path)), str(tmp_path / "answer.json"))
    assert capsys.readouterr().out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
