"""``roofplan`` and its sub-commands: listing, sweeping, replaying; mistakes are one sentence."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from roofplan.cli import COMMANDS, roofplan
from roofplan.planner.command import run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``roofplan`` with these arguments: (exit code, stdout, stderr)."""

    def go(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            run(roofplan, "roofplan", list(args))
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return go


def test_help_lists_the_commands_without_importing_them(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in ("plan", "simulate", "calibrate", "validate", "sweep", "report", "models", "gpus", "techniques"):
        assert name in out
    light = "import sys, roofplan.cli; assert 'numpy' not in sys.modules and 'rich' not in sys.modules and 'pulp' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(call: Any, name: str) -> None:
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert "Usage:" in out


def test_a_command_whose_package_is_missing_says_so(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "calibrate", ("calibrate.nowhere", "calibrate", ""))
    code, _, err = call("calibrate")
    assert code == 2
    assert err == "error: roofplan calibrate needs roofplan.calibrate.nowhere, which is not installed; see the extras in the README\n"


def test_help_says_whose_limits_a_replicas_are(call: Any) -> None:
    code, out, _ = call("simulate", "-h")
    text = " ".join(out.split())
    assert code == 0
    assert "of all --dp ranks, of one --pp micro-batch" in text
    assert "over its ranks and micro-batches" in text


def test_unknown_command(call: Any) -> None:
    code, _, err = call("fly")
    assert code == 2
    assert err.startswith("error: No such command 'fly'")


def test_models_and_gpus(call: Any) -> None:
    code, out, _ = call("models", "--json", "-", "llama3-8b")
    (row,) = json.loads(out)["models"]
    assert code == 0
    assert row["params"] == pytest.approx(8.03e9, rel=1e-3)
    code, out, _ = call("gpus", "--json", "-")
    rows = {row["name"]: row for row in json.loads(out)["gpus"]}
    assert code == 0
    assert {"a100-40gb-sxm", "h100-sxm", "h200", "b200", "mi300x", "ascend-910b"} <= set(rows)
    assert rows["h100-sxm"]["efficiencies"] == "measured"
    for command in ("models", "gpus", "techniques"):
        code, out, _ = call(command)
        assert code == 0
        assert max(len(line) for line in out.splitlines()) <= 80
        assert "…" not in out


def test_techniques_say_what_they_lose(call: Any) -> None:
    code, out, _ = call("techniques", "--json", "-", "speculation")
    rows = {row["name"]: row for row in json.loads(out)["techniques"]}
    assert code == 0
    assert (rows["mtp"]["exactness"], rows["mtp"]["switched_on_in"]) == ("same distribution", "vllm, sglang")
    assert "h2o" not in rows


def test_sweep_is_tidy(call: Any) -> None:
    code, out, err = call("sweep", "--model", "llama3.2-1b", "--seq", "8K,max", "--gpus", "1,4", "--gpu", "h100-sxm,a100-80gb-sxm")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 8
    good = [r for r in rows if r["gpu"] == "h100-sxm"]
    assert all(r["fits"] == "True" for r in good)
    longest = {r["n_gpus"]: int(r["seq_tokens"]) for r in good if int(r["seq_tokens"]) > 8192}
    assert longest["4"] > longest["1"]
    code, out, _ = call("sweep", "--model", "llama3.2-1b", "--seq", "8K", "--gpus", "4", "--json", "-")
    assert json.loads(out)["rows"][0]["fits"] is True


GRID = ",".join(map(str, range(1, 3001)))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["sweep", "--model", "llama3-8b", "--gpus", "8,x"], "--gpus 8,x: 'x' is not a whole number; write 8 or 8,16,32"),
        (["sweep", "--model", "llama3-8b", "--seq", "8K,,"], "--seq 8K,,: '' is not a token count"),
        (["sweep", "--model", "llama3-8b", "--gpu", "h100-sxm,h9000"], "--gpu h100-sxm,h9000: unknown GPU 'h9000'"),
        (["sweep", "--model", "nope"], "unknown model 'nope'"),
        (["sweep", "--gpus", "8"], "no model given; add --model"),
        (
            ["sweep", "--model", "llama3-8b", "--gpus", ",".join(map(str, range(1, 3001)))],
            "the grid has 3,000 points, over the limit of 2,000; split it",
        ),
        (["report", "/no/such.json"], "'/no/such.json': cannot be read: No such file or directory"),
        (["simulate", "/no/such.json"], "'/no/such.json': cannot be read: No such file or directory"),
    ],
)
def test_mistakes(call: Any, args: list[str], sentence: str) -> None:
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {sentence}"), err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An answer of plan for a model that needs a pipeline."""
    path = tmp_path_factory.mktemp("answer") / "answer.json"
    with pytest.raises(SystemExit):
        run(roofplan, "roofplan", ["plan", "--model", "llama3-70b", "--gpus", "32", "--framework", "megatron", "--json", str(path)])
    return path


def test_report_shows_a_saved_answer(call: Any, answer: Path) -> None:
    code, out, _ = call("report", str(answer))
    assert code == 0
    assert "llama3-70b on 32 x h100-sxm" in out
    assert "Binding limit" in out


def test_report_shows_a_saved_serving_answer(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    asked = ["--task", "serve", "--model", "llama3.2-1b", "--gpus", "1", "--isl", "500", "--osl", "100", "--json", str(path)]
    with pytest.raises(SystemExit):
        run(roofplan, "roofplan", ["plan", *asked])
    code, out, _ = call("report", str(path))
    assert code == 0
    assert "500 tokens in, 100 out" in out
    code, _, err = call("simulate", str(path))
    assert code == 2
    assert "is a serving plan" in err


def test_simulate_replays_a_saved_plan(call: Any, answer: Path, tmp_path: Path) -> None:
    plans = json.loads(answer.read_text())["plans"]
    rank = next(p["rank"] for p in plans if p["layout"]["pp"] > 1)
    trace = tmp_path / "trace.json"
    code, out, err = call("simulate", str(answer), "--rank", str(rank), "--perfetto", str(trace), "--json", "-")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["closed_form_s"] == pytest.approx(plans[rank - 1]["step_time_s"], rel=1e-9)
    assert data["step_time_s"] == pytest.approx(data["closed_form_s"], rel=0.02)
    assert plans[rank - 1]["replay"]["step_time_s"] == pytest.approx(data["step_time_s"], rel=1e-9)
    assert json.loads(trace.read_text())["traceEvents"]
    code, out, _ = call("simulate", str(answer), "--rank", str(rank))
    assert code == 0
    assert "in closed form" in out
    code, out, _ = call("simulate", str(answer), "--rank", str(rank), "--jitter", "0.1", "--seed", "3", "--json", "-")
    assert json.loads(out)["step_time_s"] > data["step_time_s"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "holds a JSON list, not the object that plan --json writes"),
        ("{", "not valid JSON: Expecting property name"),
        ("{}", "not an answer of plan --json: KeyError"),
        ('{"plans": [{}], "scenario": {}}', "not an answer of plan --json: KeyError"),
        ('{"plans": 3, "scenario": 4}', "not an answer of plan --json: TypeError"),
        ("[" * 100_000, "not valid JSON: "),
    ],
)
def test_broken_answers_are_one_sentence(call: Any, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    for command in ("simulate", "report"):
        code, out, err = call(command, str(file))
        assert code == 2
        assert "\n" not in err.rstrip("\n")
        assert sentence.split(":")[0] in err or "not an answer" in err, err
        assert "defect" not in err
        del out


def test_simulate_wants_a_rank_that_is_there(call: Any, answer: Path) -> None:
    code, _, err = call("simulate", str(answer), "--rank", "99")
    assert code == 2
    assert "--rank 99 is not in" in err
    code, _, err = call("simulate", str(answer), "--jitter", "9")
    assert code == 2
    assert err == "error: --jitter 9.0 must be between 0 and 1\n"
