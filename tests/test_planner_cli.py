"""The command line as a user meets it: outputs, exit codes, one sentence per mistake, nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.cli import plan
from roofplan.planner.command import run

BASE = ["--model", "llama3-8b", "--seq", "32K", "--gpus", "8"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``plan`` with these arguments: (exit code, stdout, stderr)."""

    def go(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            run(plan, "plan", list(args))
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return go


def test_json_alone_on_stdout_holds_the_contract(call: Any) -> None:
    code, out, err = call(*BASE, "--json", "-", "--top", "3")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert {"task", "model", "gpu", "n_gpus", "seq_tokens"} <= set(data["scenario"])
    assert data["scenario"]["seq_tokens"] == 32768
    assert {"plans", "rejected", "binding_limit", "solver", "provenance"} <= set(data)
    assert {"name", "status", "gap_frac", "wall_s", "n_candidates"} <= set(data["solver"])
    assert data["solver"]["gap_frac"] == 0
    assert [p["rank"] for p in data["plans"]] == [1, 2, 3]
    wanted = {"rank", "layout", "step_time_s", "tokens_per_s_per_gpu", "mfu_frac", "flops_convention", "memory", "bottleneck",
              "cost_usd_per_mtoken", "error_frac"}  # fmt: skip
    layout = {"dp", "tp", "pp", "cp", "cp_kind", "ep", "zero_stage", "micro_batch", "grad_accum", "recompute", "offload", "techniques"}
    for p in data["plans"]:
        assert wanted <= set(p)
        assert layout <= set(p["layout"])
        memory = p["memory"]
        assert {"total_bytes", "limit_bytes", "host_bytes"} <= set(memory)
        parts = sum(memory[k] for k in memory if k not in ("total_bytes", "limit_bytes", "host_bytes", "host_limit_bytes"))
        assert parts == pytest.approx(memory["total_bytes"], rel=1e-9)
        assert memory["total_bytes"] <= memory["limit_bytes"]
        rate = 32768 * p["global_batch"] / p["step_time_s"] / 8
        assert p["tokens_per_s_per_gpu"] == pytest.approx(rate)
    times = [p["step_time_s"] for p in data["plans"]]
    assert times == sorted(times)
    assert all({"reason", "count", "example"} == set(row) for row in data["rejected"])


def test_the_table_fits_80_columns_and_says_why(call: Any) -> None:
    code, out, err = call(*BASE)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "seq 32,768 (32K)" in out
    assert "rank 1 spends" in out
    assert re.search(r"rank 2 is (.* slower per token|as fast)", out)
    assert "Binding limit:" in out
    assert "layouts priced" in out


def test_files_are_complete_or_absent(call: Any, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    code, out, _ = call(*BASE, "--json", str(target))
    assert code == 0
    assert json.loads(target.read_text())["plans"]
    assert "rank 1" in out
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    code, _, err = call(*BASE, "--json", str(tmp_path / "no" / "where.json"))
    assert code == 2
    assert err == (
        f"error: --json {tmp_path}/no/where.json: cannot be written: there is no folder {tmp_path}/no; "
        "name a file in a folder that exists\n"
    )


def test_nothing_fits_is_an_answer_with_exit_code_1(call: Any) -> None:
    code, out, err = call("--model", "llama3.1-405b", "--gpus", "8")
    assert (code, err) == (1, "")
    assert "No plan fits: " in out
    assert re.search(r"breaks (host|device) memory: [\d,.]+ GiB of [\d,.]+ GiB, \d+% over", " ".join(out.split()))
    assert "--gpus" in out
    code, out, _ = call("--model", "llama3.1-405b", "--gpus", "8", "--json", "-")
    data = json.loads(out)
    assert code == 1
    assert data["plans"] == []
    assert data["nearest"]
    assert data["binding_limit"] == "infeasible"


def test_the_nearest_change_really_fits(call: Any) -> None:
    _, out, _ = call("--model", "llama3.1-405b", "--gpus", "8", "--json", "-")
    changes = json.loads(out)["nearest"]
    gpus = next(re.search(r"--gpus (\d+)", c) for c in changes if "--gpus" in c)
    assert gpus
    assert call("--model", "llama3.1-405b", "--gpus", gpus.group(1), "--json", "-")[0] == 0
    assert call("--model", "llama3.1-405b", "--gpus", str(int(gpus.group(1)) // 2), "--json", "-")[0] == 1


def test_seq_max_prints_the_length_found(call: Any) -> None:
    code, out, _ = call("--model", "llama3-8b", "--gpus", "8", "--seq", "max", "--json", "-")
    data = json.loads(out)
    assert code == 0
    assert data["scenario"]["objective"] == "max-seq"
    assert data["scenario"]["seq_tokens"] == data["plans"][0]["seq_tokens"] > 1_000_000
    assert data["binding_limit"] in ("hbm", "host_ram")
    lengths = [p["seq_tokens"] for p in data["plans"]]
    assert lengths == sorted(lengths, reverse=True)


def test_cost_may_leave_gpus_idle(call: Any) -> None:
    code, out, _ = call("--model", "llama3-8b", "--gpus", "64", "--objective", "cost", "--json", "-")
    plans = json.loads(out)["plans"]
    assert code == 0
    costs = [p["cost_usd_per_mtoken"] for p in plans]
    assert costs == sorted(costs)
    assert plans[0]["n_gpus"] < 64


def test_throughput_may_grow_the_batch(call: Any) -> None:
    _, timed, _ = call("--model", "llama3-8b", "--gpus", "8", "--json", "-")
    _, fast, _ = call("--model", "llama3-8b", "--gpus", "8", "--objective", "throughput", "--json", "-")
    first, second = json.loads(timed)["plans"][0], json.loads(fast)["plans"][0]
    assert second["tokens_per_s_per_gpu"] >= first["tokens_per_s_per_gpu"]
    assert second["global_batch"] >= first["global_batch"]


def test_scenario_files(call: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('model = "llama3-8b"\nn_gpus = 8\nseq = "32K"\ntop = 2\n')
    code, out, _ = call("--scenario", str(file), "--json", "-")
    assert code == 0
    assert len(json.loads(out)["plans"]) == 2


def test_a_model_by_path(call: Any, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
              "num_attention_heads": 32, "num_key_value_heads": 4, "num_hidden_layers": 22, "vocab_size": 32000}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call("--model", str(tmp_path), "--gpus", "8", "--json", "-")[0] == 0


MISTAKES = [
    (["--model", "llama9", "--gpus", "8"], "unknown model 'llama9'; nearest: "),
    (["--model", "llama3-8b"], "no n_gpus given; add --gpus"),
    (["--gpus", "8"], "no model given; add --model"),
    (["--model", "llama3-8b", "--gpus", "0"], "n_gpus=0 must be between 1 and 1,000,000"),
    (["--model", "llama3-8b", "--gpus", "-8"], "n_gpus=-8 must be between 1 and 1,000,000"),
    (["--model", "llama3-8b", "--gpus", "99999999999999"], "n_gpus=99,999,999,999,999 must be between 1 and 1,000,000"),
    (["--model", "llama3-8b", "--gpus", "2.5"], "Invalid value for '--gpus': '2.5' is not a valid integer"),
    (["--model", "llama3-8b", "--gpus", "nan"], "Invalid value for '--gpus': 'nan' is not a valid integer"),
    (["--model", "llama3-8b", "--gpus", "13"], "n_gpus=13 is not a whole number of nodes of 8; nearest: 8, 16"),
    (["--model", "llama3-8b", "--gpus", "8", "--gpu", "h9000"], "unknown GPU 'h9000'; nearest: "),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "nan"], "'nan' is not a token count; write 131072, 128K, 1M or 1e6"),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "-5"], "'-5' is not a token count"),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "0"], "'0' is not a whole number of tokens between 1 and 1e12"),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "9e99"], "'9e99' is not a whole number of tokens"),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "max", "--objective", "time"], "seq=max looks for the longest sequence"),
    (["--model", "llama3-8b", "--gpus", "8", "--seq", "8K", "--objective", "max-seq"], "objective max-seq looks for the sequence itself"),
    (["--model", "llama3-8b", "--gpus", "8", "--task", "serve"], "--task serve needs --isl"),
    (["--model", "llama3-8b", "--gpus", "8", "--task", "rl"], "--task rl is not available in this version"),
    (["--model", "llama3-8b", "--gpus", "8", "--isl", "4000"], "--isl belongs to --task serve; add that"),
    (["--model", "llama3-8b", "--gpus", "8", "--objective", "joy"], "Invalid value for '--objective': 'joy' is not one of"),
    (["--model", "llama3-8b", "--gpus", "8", "--allow", "chaos"], "allow='chaos' is not known; legal: quant"),
    (["--model", "llama3-8b", "--gpus", "8", "--precision", "fp8"], "precision=fp8 changes the numerics; add --allow quant"),
    (["--model", "llama3-8b", "--gpus", "8", "--gpu", "a100-80gb-sxm", "--precision", "fp8", "--allow", "quant"],
     "a100-80gb-sxm has no fp8 arithmetic; legal: bf16"),
    (["--model", "llama3-8b", "--gpus", "8", "--framework", "deepspeed", "--precision", "fp8", "--allow", "quant"],
     "framework=deepspeed cannot train this: no fp8 training; legal: megatron"),
    (["--model", "llama3-8b", "--gpus", "8", "--global-batch", "12", "--micro-batch", "5"],
     "micro_batch=5 does not divide global_batch=12; make one a multiple of the other"),
    (["--model", "llama3-8b", "--gpus", "8", "--framework", "torchtitan", "--optimizer", "lion"],
     "framework=torchtitan cannot train this: no switch for optimizer=lion; legal: deepspeed"),
    (["--model", "gemma2-9b", "--gpus", "8", "--framework", "fsdp2"],
     "framework=fsdp2 cannot train this: gemma2-9b has a sliding window"),
    (["--model", "llama3-8b", "--gpus", "8", "--host-ram", "lots"], "'lots' is not a number with a unit of bytes"),
    (["--model", "llama3-8b", "--gpus", "8", "--host-ram", "-1GB"], "'-1GB' must be finite and not negative"),
    (["--model", "llama3-8b", "--gpus", "8", "--host-ram", "0GB"], "'0GB' is no memory at all; give more than 0"),
    (["--model", "llama3-8b", "--gpus", "8", "--price", "0"], "--price 0 must be finite and above 0"),
    (["--model", "llama3-8b", "--gpus", "8", "--price", "cheap"], "--price 'cheap' is not a number of US dollars per GPU hour; write 2.5"),
    (["--model", "llama3-8b", "--gpus", "8", "--price", "nan"], "--price nan must be finite and above 0"),
    (["--model", "llama3-8b", "--gpus", "8", "--calibration", "/no/such.toml"], "'/no/such.toml': cannot be read: No such file"),
    (["--model", "llama3-8b", "--gpus", "8", "--scenario", "/no/such.toml"], "'/no/such.toml': cannot be read: No such file"),
    (["--model", "llama3-8b", "--gpus", "8", "--top", "0"], "top=0 must be between 1 and 100"),
    (["--model", "/no/such/config.json", "--gpus", "8"], "'/no/such/config.json': cannot be read"),
    (["--model", "llama3-8b", "--gpus", "8", "--speed", "9"], "No such option"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "sentence"), MISTAKES, ids=lambda x: " ".join(x)[-40:] if isinstance(x, list) else None)
def test_every_mistake_is_one_sentence_and_exit_code_2(call: Any, args: list[str], sentence: str) -> None:
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {sentence}"), err
    assert err.count("\n") == 1
    assert "defect" not in err


def test_a_cluster_without_a_price_cannot_be_the_cheapest(call: Any) -> None:
    code, _, err = call("--model", "llama3-8b", "--gpus", "8", "--gpu", "ascend-910b", "--objective", "cost")
    assert code == 2
    assert err.startswith("error: no public price of ascend-910b is known")
    assert call("--model", "llama3-8b", "--gpus", "8", "--gpu", "ascend-910b", "--objective", "cost", "--price", "2", "--json", "-")[0] == 0


def test_odd_numbers_of_gpus_are_planned(call: Any) -> None:
    for n in ("1", "3", "7"):
        code, out, _ = call("--model", "llama3.2-1b", "--gpus", n, "--json", "-")
        assert code == 0
        assert json.loads(out)["plans"][0]["n_gpus"] == int(n)


def test_a_defect_is_one_sentence_too(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("roofplan.planner.cli.decide", broken)
    code, _, err = call(*BASE)
    assert code == 2
    assert err == "error: this is a defect of roofplan (KeyError: 'oops'); please report it with the command you ran\n"
    monkeypatch.setenv("ROOFPLAN_DEBUG", "1")
    with pytest.raises(KeyError):
        run(plan, "plan", BASE)


def test_help_names_every_flag(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for flag in ("--model", "--seq", "--gpus", "--gpu", "--gpus-per-node", "--task", "--objective", "--allow", "--calibration", "--top",
                 "--out", "--json"):  # fmt: skip
        assert flag in out
