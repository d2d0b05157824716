"""Commands of the serving side given what no one should type: one sentence, exit code 2 (1: nothing fits), no half-written file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roofplan.cli import roofplan
from roofplan.planner.cli import plan
from roofplan.planner.command import run
from roofplan.scenarios.errors import BadInput
from roofplan.sim.traces import read_trace

SIMULATE = ["simulate", "--model", "llama3-8b", "--gpu", "a100-80gb-sxm"]
LENGTHS = ["--isl", "512", "--osl", "8", "--requests", "20"]
BASE = [*SIMULATE, *LENGTHS, "--rate", "4"]
SERVE = ["--task", "serve", "--model", "llama3.1-8b", "--gpu", "h200"]
ASK = [*SERVE, "--gpus", "2", "--isl", "1000", "--osl", "50"]
MOE = ["simulate", "--model", "mixtral-8x7b", "--gpu", "h200", "--gpus", "2", "--tp", "2", *LENGTHS, "--rate", "1"]


def call(command: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command; a warning or a defect of ours is a failure."""
    with warnings.catch_warnings(action="error"), pytest.raises(SystemExit) as stop:
        run(command, "x", words)
    out, err = capsys.readouterr()
    assert "defect" not in err
    return int(stop.value.code or 0), out, err


def refused(command: Any, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], code: int = 2) -> None:
    found, out, err = call(command, words, capsys)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--rate nan", "--rate nan must be from 0.000001 to 1,000,000,000"),
        ("--cv 1e-300", "--cv 1e-300 must be from 0.01 to 100"),
        ("--length-cv inf", "--length-cv inf must be from 0 to 100"),
        ("--swing nan", "--swing nan must be from 0 to 1"),
        ("--period 1ms", "--period 1ms must be from 1s to 1e8s, like 24h"),
        ("--period soon", "--period 'soon' is not a number with a unit of s"),
        ("--rate 0.001 --swing 0.5 --period 1s", "such a swing averages out; give a longer period or none"),
        ("--swing 0.5 --cv 3", "--cv and --swing cannot be combined"),
        ("--isl 1e12", "--isl 1e12 is over the limit of 1,000,000,000 tokens of a request"),
        ("--osl 0", "--osl '0' is not a whole number of tokens"),
        ("--chunk x", "--chunk 'x' is not a token count"),
        ("--ttft 5", "--ttft '5' is not a number with a unit of s"),
        ("--rate 0.000001 --requests 90", "over the 8,000,000 s (92 days) of a run"),
        ("--requests 6000000", "--requests 6,000,000 is over the limit of 5,000,000 for a made-up workload; give fewer, or a trace"),
        ("--pp 64 --gpus 64", "--pp 64 is over the 32 layers of llama3-8b"),
        ("--weights fp7", "weight_dtype='fp7' is not known; legal: bf16"),
        ("--expert-skew 1", "--expert-skew is for models with experts, and llama3-8b has none; drop it"),
        ("--redundant-experts 2", "--redundant-experts is for models with experts"),
        ("--experts fp8", "--experts is for models with experts"),
        ("--redundant-experts 5000", "redundant_experts=5000 must be between 0 and 4,096"),
        ("--speculation mtp:1:0.9", "llama3-8b has no multi-token-prediction layers"),
        ("--speculation chain:2:0.7:draft=llama3-70b", "billion parameters and llama3-8b 8.0; a draft must be smaller"),
        ("--speculation chain:2:0.7:draft=nope", "unknown model 'nope'"),
        ("--prefill-sm 1e-9", "--prefill-sm 1e-09 must be from 0.05 to 0.95, or 0 for no split"),
        ("--kv-overlap 0.5", "--kv-overlap hides transfers from replicas that only prefill"),
        ("--window 1s..2s", "--window is the part of the run that --perfetto shows"),
        ("--window 5s..2s --perfetto p.json", "--window '5s..2s' must end after its start"),
        ("--csv - --json -", "--csv and --json both write to standard output; give each a file of its own"),
        ("--csv a --html a", "--html and --csv both write to a; give each a file of its own"),
        ("--gpus 5 --prefill 1 --tp 2", "gpus=3 (5 less 1 x 2 that prefill) is not a whole number of replicas of 2 GPUs"),
    ],
)
def test_simulate_says_which_flag_and_what_is_legal(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(roofplan, [*BASE, *words.split()], sentence, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--concurrency 2 --cv 3", "--cv 3 is the burstiness of --rate; give a rate, or drop it"),
        ("--concurrency 2 --swing 0.1", "--swing 0.1 is the daily swing of --rate"),
        ("--burst 0:1s", "--burst '0:1s' is not SIZE:GAP with a size from 1 to 1e12"),
        ("--burst 99999999999999999999:1s", "is not SIZE:GAP"),
        ("--burst 3:1e300s", "the gap must be at most 300,000,000 s"),
        ("--burst 3:soon", "--burst 'soon' is not a number with a unit of s"),
    ],
)
def test_arrivals_that_contradict(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(roofplan, [*SIMULATE, *LENGTHS, *words.split()], sentence, capsys)


def test_a_run_that_serves_nothing_is_no_table_of_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SIMULATE, "--isl", "1M", "--osl", "8", "--requests", "20", "--rate", "4"]
    refused(roofplan, words, "the shortest needs 1,048,584 tokens of KV cache and a replica holds 4", capsys, code=1)
    code, out, _ = call(roofplan, [*SIMULATE, "--isl", "9000", "--osl", "8", "--requests", "20", "--rate", "4"], capsys)
    assert code == 0
    assert "Note: the longest request, 9,008 tokens, is beyond the 8,192 that llama3-8b was made for" in " ".join(out.split())


def test_standard_output_holds_what_was_asked_for_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(roofplan, [*BASE, "--csv", "-"], capsys)
    assert len(out.splitlines()) == 21
    _, out, err = call(plan, [*ASK, "--json", "-"], capsys)
    assert json.loads(out)["plans"]
    assert not err


def test_figures_without_a_value_or_with_a_large_one(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(roofplan, [*SIMULATE, "--isl", "5", "--osl", "1", "--requests", "20", "--rate", "0.01"], capsys)
    tpot = next(line for line in out.splitlines() if line.startswith("TPOT"))
    assert set(tpot.split()[1:]) == {"-"}
    assert "e+" not in out
    assert "USD per million output tokens" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--rate 1e-9", "--rate 1e-9 must be a number of requests a second, from 0.001 to 1,000,000"),
        ("--concurrency 1e9", "--concurrency 1e9 must be a whole number of clients, from 1 to 1,000,000"),
        ("--gpus 0", "--gpus 0 must be between 1 and 1,000,000"),
        ("--gpus-per-node -1", "--gpus-per-node -1 must be between 1 and 1,000,000"),
        ("--top -1", "--top -1 must be between 1 and 100"),
        ("--tpot nan", "--tpot 'nan' is not a number with a unit of s"),
        ("--isl 1e9", "was made for; shorten them or choose a model with a longer context"),
        ("--isl 1e9 --rope-scaling yarn:4", "with --rope-scaling yarn:4; shorten them"),
        ("--expert-skew 1", "--expert-skew is for models with experts, and llama3.1-8b has none; drop it"),
        ("--speculation chain:3:0.7:draft=nope", "unknown model 'nope'"),
        ("--speculation chain:3:0.7:draft=llama3.1-8b", "a draft must be smaller"),
        ("--json no/such/folder/x", "--json no/such/folder/x: cannot be written: there is no folder no/such/folder"),
    ],
)
def test_plan_says_which_flag_and_what_is_legal(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(plan, [*ASK, *words.split()], sentence, capsys)


def test_two_requests_of_a_trace_are_enough_to_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "two.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n-5,500,20\n3,500,20\n")
    code, out, _ = call(plan, [*SERVE, "--gpus", "1", "--trace", str(trace), "--json", "-"], capsys)
    assert code == 0
    assert json.loads(out)["scenario"]["rate_per_s"] == pytest.approx(1 / 8)


ODD = [
    "0",
    "-1",
    "1",
    "3",
    "nan",
    "inf",
    "1e308",
    "1e-300",
    "",
    "x",
    "0.5",
    "8K",
    "99999999999999999999",
    "5s",
    "0s",
    "-3ms",
    "2:2:2",
    "\u00e9\udcff",
]
FLAGS = [
    "--gpus", "--isl", "--osl", "--requests", "--rate", "--concurrency", "--think", "--cv", "--swing", "--period", "--burst",
    "--length-cv", "--tp", "--pp", "--dp", "--ep", "--cp", "--ffn-gpus", "--expert-skew", "--redundant-experts", "--engine",
    "--policy", "--chunk", "--max-num-seqs", "--block", "--kv-blocks", "--kv-tier", "--speculation", "--weights", "--experts",
    "--kv-dtype", "--prefill", "--prefill-tp", "--prefill-sm", "--kv-overlap", "--autoscale", "--ttft", "--tpot", "--e2e", "--seed",
    "--window", "--trace", "--gpu", "--model",
]  # fmt: skip
PLAN_FLAGS = [
    "--gpus", "--isl", "--osl", "--rate", "--concurrency", "--ttft", "--tpot", "--engine", "--speculation", "--expert-skew",
    "--rope-scaling", "--top", "--price", "--gpus-per-node", "--objective", "--allow", "--trace", "--calibration", "--gpu", "--model",
    "--host-ram", "--memory-margin", "--json", "--out",
]  # fmt: skip
QUICK = settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(st.dictionaries(st.sampled_from(FLAGS), st.sampled_from(ODD), min_size=1, max_size=3), st.sampled_from([BASE, MOE]))
def test_any_flags_of_simulate_give_an_answer_or_a_sentence(
    capsys: pytest.CaptureFixture[str], odd: dict[str, str], base: list[str]
) -> None:
    code, out, err = call(roofplan, [*base, *(word for pair in odd.items() for word in pair)], capsys)
    assert code in (0, 1, 2)
    assert (code == 0) == bool(out) == (not err)
    assert err.count("\n") == (code > 0)


@settings(QUICK, max_examples=60)
@given(st.dictionaries(st.sampled_from(PLAN_FLAGS), st.sampled_from(ODD), min_size=1, max_size=3))
def test_any_flags_of_plan_give_an_answer_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], odd: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(plan, [*ASK, *(word for pair in odd.items() for word in pair)], capsys)
    assert code in (0, 1, 2)
    assert (code == 2) == bool(err) == (not out)


TEXTS = {
    "a.csv": "arrival_s,prompt_tokens,output_tokens\n0,5,20\n1.5,6,7\n",
    "a.jsonl": '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n',
    "a.json": '{"input_lens": [10, 20], "output_lens": [3, 4], "start_times": [7.0, 7.5]}',
    "b.json": '{"benchmarks": [{"requests": {"successful": [{"start_time": 5.0, "prompt_tokens": 10, "output_tokens": 3}]}}]}',
}
SPICE = ["9" * 400, "nan", "-1", "null", "[]", "{}", '"', "\\", "\0", "\n", "1e999", "\ufeff", "\u2028", "true", ",", "[" * 100_000]


@QUICK
@given(st.sampled_from(sorted(TEXTS)), st.integers(0, 200), st.integers(0, 40), st.sampled_from(SPICE) | st.text(max_size=9), st.booleans())
def test_any_trace_is_read_or_refused_in_a_sentence(tmp_path: Path, name: str, at: int, drop: int, spice: str, raw: bool) -> None:
    text = TEXTS[name]
    made = (text[:at] + spice + text[at + drop :]).encode("utf-8", "surrogatepass")
    (tmp_path / name).write_bytes(made[:-1] + b"\xff" if raw else made)
    try:
        assert len(read_trace(tmp_path / name)) >= 1
    except BadInput as error:
        assert str(tmp_path / name) in str(error) or "legal" in str(error)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert len(read_trace(tmp_path / name)) >= 1


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", TEXTS["a.csv"] + "1," + "5" * 200_000 + ",3\n", "not a CSV table: field larger than field limit"),
        ("a.jsonl", " " * (17 * 2**20), "line 1 is over the limit of 16,777,216 characters; is this a trace?"),
        ("a.jsonl", TEXTS["a.jsonl"].replace("600", "9" * 400), "must be a whole number from 0 to 1e9"),
        ("a.jsonl", TEXTS["a.jsonl"].replace("0, 1]", "true]"), "hash_ids must be a list of whole numbers of 64 bits"),
        ("a.jsonl", TEXTS["a.jsonl"].replace("0, 1]", "9" * 30 + "]"), "hash_ids must be a list of whole numbers of 64 bits"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON (it is nested too deep); is the file cut off?"),
        ("a.json", '{"input_lens": 5, "output_lens": [1]}', "input_lens and output_lens must be lists"),
        ("a.json", '{"benchmarks": 5}', "benchmarks must be a list"),
        ("a.json", '{"benchmarks": [{"requests": {"successful": 5}}]}', "benchmarks[0].requests.successful must be a list"),
    ],
)
def test_broken_traces(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as error:
        read_trace(tmp_path / name)
    assert sentence in str(error.value)


def test_a_huge_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name, n_bytes in (("a.csv", 5 << 30), ("a.jsonl", 5 << 30), ("a.json", 2 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(n_bytes)
        with pytest.raises(BadInput, match="bytes is over the limit of"):
            read_trace(tmp_path / name)
