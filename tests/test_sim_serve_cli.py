"""The serving simulation from the command line: the stable JSON form, repeatability, and one sentence for bad input."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from roofplan.sim.serve_cli import simulate

BASE = ["--model", "llama3-8b", "--gpu", "a100-80gb-sxm", "--isl", "512", "--osl", "64", "--rate", "4", "--requests", "200"]


def call(*args: str):
    return CliRunner().invoke(simulate, list(args))


def test_json_form_and_same_seed_same_result():
    one, two = (json.loads(call(*BASE, "--seed", "3", "--json", "-", "--ttft", "2s", "--tpot", "50ms").stdout) for _ in range(2))
    wall = one.pop("wall_s"), two.pop("wall_s")
    assert min(wall) > 0
    assert one == two
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert set(one[name]) == {"mean", "p50", "p90", "p95", "p99", "p99_9"}
        assert 0 < one[name]["p50"] <= one[name]["p99"]
    assert (one["n_requests"], one["seed"], one["preemptions"], one["saturated"]) == (200, 3, 0, False)
    assert one["goodput_per_s"] == pytest.approx(one["requests_per_s"])
    assert one["output_tokens_per_s"] == pytest.approx(64 * one["requests_per_s"])


def test_another_seed_differs_and_an_overload_is_called_one():
    calm = json.loads(call(*BASE, "--seed", "4", "--json", "-").stdout)
    busy = json.loads(call(*BASE[:-4], "--rate", "400", "--requests", "3000", "--json", "-").stdout)
    assert calm["ttft_s"]["mean"] != json.loads(call(*BASE, "--seed", "3", "--json", "-").stdout)["ttft_s"]["mean"]
    assert busy["saturated"] is True
    assert "overloaded" in call(*BASE[:-4], "--rate", "400", "--requests", "3000").output


def test_a_pipeline_says_how_much_its_stages_idle():
    """More at a low rate than when all wait; a replica of one stage says nothing of it."""
    two = ("--gpus", "2", "--pp", "2")
    calm = json.loads(call(*BASE, *two, "--json", "-").stdout)["pools"][0]["bubble_frac"]
    full = json.loads(call(*BASE[:-4], "--rate", "400", "--requests", "500", *two, "--json", "-").stdout)["pools"][0]["bubble_frac"]
    assert 0.01 < full < calm < 1
    assert f"pipeline stages idle {calm:.0%} (serve) of their time" in call(*BASE, *two).output
    assert "bubble_frac" not in json.loads(call(*BASE, "--json", "-").stdout)["pools"][0]


def test_more_gpus_are_more_replicas_and_tp_makes_fewer():
    out = json.loads(call(*BASE, "--gpus", "4", "--tp", "2", "--router", "least-outstanding", "--json", "-").stdout)
    assert (out["n_gpus"], out["n_replicas"]) == (4, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "llama3-8b"], "no workload: give --trace FILE"),
        ([*BASE, "--trace", "x.csv"], "both say what the requests are"),
        (["--model", "llama3-8b", "--trace", "none.csv"], "none.csv: not a file"),
        ([*BASE, "--tp", "3"], "--tp 3 does not divide the 32 heads of llama3-8b; legal: 1, 2, 4, 8, 16, 32"),
        ([*BASE, "--tp", "2", "--gpus", "3"], "gpus=3 is not a whole number of replicas of 2 GPUs"),
        ([*BASE, "--chunk", "16"], "max_num_seqs=256 is over the token budget of 16"),
        ([*BASE, "--kv-dtype", "bf17"], "kv_dtype='bf17' is not known"),
        ([*BASE, "--rate", "-1"], "--rate -1 must be from 0.000001 to 1,000,000,000"),
        ([*BASE, "--ttft", "2 apples"], "is not a number with a unit"),
        ([*BASE, "--engine", "nope"], "unknown serving engine 'nope'"),
        ([*BASE, "--json", "no/such/dir/x.json"], "cannot be written"),
        (["--model", "llama3-70b", "--gpu", "a100-80gb-sxm", *BASE[4:]], "no room for a KV cache; raise tp or pp"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(args, message):
    result = call(*args)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_disaggregated_pools_keep_decode_steady():
    """Decode replicas never carry a prompt, so the longest gap between tokens falls; a pool of all prefill is refused."""
    args = [
        "--model",
        "llama3-8b",
        "--gpu",
        "a100-80gb-sxm",
        "--isl",
        "4096",
        "--osl",
        "64",
        "--rate",
        "8",
        "--requests",
        "300",
        "--gpus",
        "4",
    ]
    mixed, split = (json.loads(call(*args, "--prefill", n, "--json", "-").stdout) for n in ("0", "2"))
    assert split["itl_s"]["p99"] < 0.7 * mixed["itl_s"]["p99"]
    assert (split["n_rejected"], split["n_replicas"]) == (0, 4)
    assert "prefill=4 replicas of 1 GPUs leave 0 of 4 GPUs: at least one replica of 1 must decode" in call(*args, "--prefill", "4").output


def test_prefix_cache_shortens_a_repeated_prompt(tmp_path):
    record = '{{"timestamp": {}, "input_length": 4096, "output_length": 4, "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7]}}\n'
    trace = tmp_path / "moon.jsonl"
    trace.write_text("".join(record.format(20_000 * i) for i in range(3)))
    args = ["--model", "llama3-8b", "--gpu", "a100-80gb-sxm", "--trace", str(trace), "--json", "-"]
    cold, warm = json.loads(call(*args).stdout), json.loads(call(*args, "--prefix-cache").stdout)
    assert warm["cache_hit_frac"] == pytest.approx(2 * 4095 / (3 * 4096))
    assert warm["ttft_s"]["p50"] < 0.4 * cold["ttft_s"]["p50"]
    refused = call(*args, "--prefix-cache", "--block", "100")
    assert "block=100 does not divide the trace's hash blocks of 512" in refused.output
    assert "names no prompt blocks" in call(*BASE, "--prefix-cache").output


def test_scenario_file_gives_what_the_flags_do_not(tmp_path):
    scenario = tmp_path / "chat.toml"
    (tmp_path / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},500,20\n" for i in range(20)))
    scenario.write_text('model = "llama3-8b"\ngpu = "a100-80gb-sxm"\ntrace = "trace.csv"\nmax-num-seqs = 64\nseed = 5\n')
    out = json.loads(call(str(scenario), "--seed", "7", "--json", "-").stdout)
    assert (out["model"], out["gpu"], out["n_requests"], out["seed"], out["plan"]["max_num_seqs"]) == (
        "llama3-8b",
        "a100-80gb-sxm",
        20,
        7,
        64,
    )
    for text, message in (
        ("modle = 1", "unknown key 'modle'; did you mean model"),
        ("seed = -1", "seed: -1 is not in the range"),
        ("seed", "TOML"),
        ('trace = "a\\u0000b"', "trace: 'a\\x00b' holds a NUL character"),
    ):
        scenario.write_text(text)
        result = call(str(scenario))
        assert result.exit_code == 2
        assert message in result.output
    assert "no model given" in call("--isl", "5", "--osl", "5", "--rate", "1").output


def test_report_file_appears_whole(tmp_path):
    target = tmp_path / "out.json"
    assert call(*BASE, "--json", str(target)).exit_code == 0
    assert json.loads(target.read_text())["model"] == "llama3-8b"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
