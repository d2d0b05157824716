"""The command: tables, JSON, exit codes 0, 1 and 2, whole files or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from roofplan.calibrate import validate_cli
from roofplan.calibrate.validate_cli import validate

SIX = ("bigmac-volume", "bigmac-flops", "bigmac-params")
SMALL = Path(__file__).parent / "data" / "training" / "small.csv"


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(validate, list(args), catch_exceptions=False)


def test_cases_as_a_table() -> None:
    done = run(*SIX)
    assert done.exit_code == 0
    assert "6 pass, 0 miss" in done.stdout
    assert "bigmac-volume-narrow" in done.stdout


def test_cases_as_json_and_nothing_else() -> None:
    done = run(*SIX, "--json", "-")
    result = json.loads(done.stdout)
    assert result["rows"][0]["case"].startswith("bigmac")
    assert result["summary"]["pass"] == 6


def test_json_file_beside_the_table(tmp_path: Path) -> None:
    out = tmp_path / "v.json"
    done = run("bigmac-volume", "--json", str(out))
    assert done.exit_code == 0
    assert "bigmac-volume" in done.stdout
    assert json.loads(out.read_text(encoding="utf-8"))["summary"]["n"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"]


def test_a_miss_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missed(cases: object) -> dict[str, object]:
        row = {
            "case": "x",
            "system": "s",
            "metric": "m",
            "published": 1.0,
            "predicted": 2.0,
            "error_frac": 1.0,
            "tolerance_frac": 0.1,
            "status": "miss",
        }
        return {"rows": [row], "summary": {"n": 1, "pass": 0, "miss": 1, "claimed": 0}}

    monkeypatch.setattr(validate_cli, "run_cases", missed)
    out = tmp_path / "v.json"
    done = run("bigmac", "--json", str(out))
    assert done.exit_code == 1
    assert "error: 1 of 1 cases outside their bar: x" in done.stderr
    assert out.exists()  # the result is written, then judged


def test_training(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    done = run("--training", str(SMALL), "--json", str(out))
    assert done.exit_code == 0
    assert "step time by source" in done.stdout
    assert set(json.loads(out.read_text(encoding="utf-8"))) == {"rows", "skipped", "summary"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nobody",), "unknown case 'nobody'"),
        (("--training", "missing.csv"), "'missing.csv': cannot be read"),
        (("bigmac", "--training", str(SMALL)), "CASE 'bigmac' and --training exclude each other"),
        (("--serving", "x.csv"), "x.csv: no such measurement table"),
        (("--serving-log", "dir"), "dir: no folder with meta.json and requests.jsonl; give the folder of an engine run"),
        (("bigmac", "--json", "no/such/folder/v.json"), "cannot be written"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_sentence(args: tuple[str, ...], said: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.output


def log(folder: Path, **changes: object) -> None:
    """A log of two requests with these changes to the first of them or to the engine's settings."""
    request = {"input_toks": 9, "output_toks": 3, "queued_ts": 1.0, "first_token_ts": 1.5, "last_token_ts": 2.0}
    settings = {"tensor_parallel_size": 1} | {k: v for k, v in changes.items() if k not in request}
    meta = {"model": "llama3.1-8b", "engine_kwargs": settings, "hardware": {"device_name": "NVIDIA GeForce RTX 4090"}}
    (folder / "meta.json").write_text(json.dumps(meta))
    first = request | {k: v for k, v in changes.items() if k in request}
    (folder / "requests.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(request) + "\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"queued_ts": float("nan")}, "line 1: not a finished request (times must be finite and in order)"),
        ({"last_token_ts": 1.2}, "line 1: not a finished request (times must be finite and in order)"),
        ({"output_toks": 0}, "line 1: not a finished request (token counts must be from 1 to 1e9)"),
        ({"input_toks": 10**400}, "line 1: not a finished request"),
        ({"max_num_seqs": "many"}, "max_num_seqs=many must be a whole number"),
        ({"tensor_parallel_size": 1.5}, "tensor_parallel_size=1.5 must be a whole number"),
    ],
)
def test_a_log_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    log(tmp_path)
    assert run("--serving-log", str(tmp_path), "--json", "-").exit_code == 0
    log(tmp_path, **changes)
    done = run("--serving-log", str(tmp_path))
    assert done.exit_code == 2
    assert said in done.stderr


def test_serving_rows_with_odd_cells_are_skipped_with_the_reason(tmp_path: Path) -> None:
    head = "id,source,framework,version,model,gpu,num_gpus,tp,pp,isl,osl,concurrency,metric,value"
    fine = "a,me,vLLM,0.19,llama3.1-8b,h100-sxm,1,1,1,100,20,4,ttft_ms_p50"
    odd = [f"{fine},x", f"{fine},inf", fine.replace("1,1,1,100", "1,1,inf,100") + ",5", fine.replace("100,20", "1e30,20") + ",5"]
    (tmp_path / "t.csv").write_text("\n".join([head, f"{fine},30", *odd]) + "\n")
    done = run("--serving", str(tmp_path / "t.csv"), "--json", "-")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(result["rows"]) == 1
    assert len(result["skipped"]) == 3


def test_published_tokens_are_written_out() -> None:
    shown = CliRunner().invoke(validate, ["alst-h100-8"], env={"COLUMNS": "30"}).stdout
    assert "3,700,000" in shown
    assert "…" not in shown


@pytest.mark.parametrize("columns", [80, 140])
def test_the_table_of_cases_fits_the_terminal(columns: int) -> None:
    lines = CliRunner().invoke(validate, ["bigmac"], env={"COLUMNS": str(columns)}).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert ("metric" in lines[1]) == (columns == 140)
    assert all(word in lines[1] for word in ("case", "published", "predicted", "error", "bar", "status"))


def test_a_broken_table_names_the_line(tmp_path: Path) -> None:
    lines = SMALL.read_text(encoding="utf-8").splitlines()
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join([*lines[:5], lines[5][:40]]) + "\n", encoding="utf-8")
    done = run("--training", str(broken), "--json", str(tmp_path / "out.json"))
    assert done.exit_code == 2
    assert "line 6: " in done.stderr
    assert not (tmp_path / "out.json").exists()
