"""The whole folder: what it holds, its README, valid shell, YAML, JSON and Python, no trace of a machine, the same text each time."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit.serve.folder import engines
from roofplan.planner.emit.serve.readme import synthetic_acceptance
from roofplan.planner.emit.write import write_folder
from roofplan.scenarios.serving_parts import AttentionFfnSplit, Autoscale, KvTier, Speculation
from serve_jobs import STAND_IN, files_of

HOST = KvTier(name="host", capacity_bytes=1e11, bytes_per_s=2e10)
PREDICTED: dict[str, Any] = {
    "goodput_per_s": 12.5,
    "ttft_s": 0.21,
    "tpot_s": 0.0123,
    "error_frac": 0.11,
    "cost_usd_per_mtoken": 0.42,
    "output_tokens_per_s_per_gpu": 781.0,
    "why": ["tp 2 keeps TPOT; tp 1 does not"],
    "curve": [
        {"rate_per_s": 12.0, "ttft_s_mean": 0.2, "ttft_s_p99": 0.7, "tpot_s_mean": 0.012, "output_tokens_per_s": 6000},
        {"rate_per_s": 4.0, "ttft_s_mean": 0.15, "ttft_s_p99": 0.4, "tpot_s_mean": 0.009, "output_tokens_per_s": 2000},
    ],
}
DEPLOYMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("llama3.1-8b", {"tp": 1}),
    "replicas": ("llama3.1-8b", {"tp": 2, "n_replicas": 4, "predicted": PREDICTED, "slo": {"ttft_s": 2.0, "tpot_s": 0.03}}),
    "split": ("llama3.1-70b", {"tp": 4, "n_replicas": 2, "n_prefill": 2, "prefix_cache": True, "kv_tiers": (HOST,)}),
    "wide": ("deepseek-v3", {"dp": 16, "ep": 16, "n_prefill": 1, "weight_dtype": "fp8_block", "kv_dtype": "fp8"}),
    "stretched": ("llama3.1-8b", {"tp": 4, "prompt_tokens": 200_000, "rope_scaling": True}),
    "guessing": ("llama3.1-8b", {"speculation": Speculation(gamma_by_batch=((4, 5),)), "predicted": PREDICTED}),
}


@pytest.mark.parametrize("case", DEPLOYMENTS)
def test_every_file_is_valid_and_whole(case: str, tmp_path: Path) -> None:
    """Shell parses, JSON and Python too; no path of this machine or time of day; twice the same."""
    name, parts = DEPLOYMENTS[case]
    files = files_of(name, **parts)
    assert files == files_of(name, **parts)
    for file, text in files.items():
        assert text.endswith("\n"), file
        assert not re.search(r"/(home|work|tmp|root)/|20\d\d-\d\d-\d\d", text), file
        if file.endswith((".sh", ".slurm")):
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
            assert done.returncode == 0, f"{file}: {done.stderr}"
            assert "set -euo pipefail" in text
        if file.endswith(".json"):
            json.loads(text)
        if file.endswith(".py"):
            ast.parse(text)
    written = write_folder(files, tmp_path / "out")
    assert len(written) == len(files)
    assert os.access(tmp_path / "out" / "bench" / "bench.sh", os.X_OK)


def test_files_of_one_replica() -> None:
    assert set(files_of(tp=1)) == {
        "README.md", "vllm/serve.sh", "sglang/serve.sh", "tensorrt-llm/serve.sh", "tensorrt-llm/serve.yaml", "deepspeed-mii/serve.py",
        "deepspeed-mii/settings.json", "bench/bench.sh", "bench/predicted.json", "bench/compare.py",
    }  # fmt: skip


def test_readme_of_a_prediction() -> None:
    name, parts = DEPLOYMENTS["replicas"]
    text = files_of(name, **parts)["README.md"]
    for line in (
        "# llama3.1-8b served on 8 × h100-sxm",
        "| requests a second within the promises | 12.5 ± 11% |",
        "| TTFT, mean | 210 ms |",
        "| TPOT, mean | 12.3 ms |",
        "| cost | $0.42 per million output tokens |",
        "| promised TTFT | 2,000 ms |",
        "- tp 2 keeps TPOT; tp 1 does not",
        "| serve | 4 | 2 | tp 2, weights bf16, KV bf16,",
        "| vLLM 0.33.0 (the prediction's) | `vllm/serve.sh`, `vllm/launch.sh`, `vllm/router.sh` | `bash vllm/launch.sh` |",
        "| 4 | 150 | 400 | 9 |",
        "| TensorRT-LLM | several replicas without a router of its own |",
    ):
        assert line in text, line


def test_the_predictions_engine_is_marked() -> None:
    for engine, title in (("vllm", "vLLM 0.33.0"), ("sglang", "SGLang 0.5.23"), ("trtllm-1.0", "TensorRT-LLM 1.2")):
        text = files_of(tp=1, engine=engine)["README.md"]
        assert f"| {title} (the prediction's) |" in text
        assert text.count("(the prediction's)") == 1


def test_several_nodes_get_a_slurm_script(tmp_path: Path) -> None:
    name, parts = DEPLOYMENTS["wide"]
    files = files_of(name, **parts)
    assert "#SBATCH --nodes=4\n" in files["serve.slurm"]
    assert "#SBATCH --gpus-per-node=8\n" in files["serve.slurm"]
    assert "`HOSTS` and `NODE_RANK`" in files["README.md"]
    (tmp_path / "job.slurm").write_text(files["serve.slurm"])
    for program, body in (("srun", STAND_IN), ("scontrol", "#!/usr/bin/env bash\nprintf 'a\\nb\\n'\n")):
        (tmp_path / program).write_text(body)
        (tmp_path / program).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "x",
    }
    subprocess.run(["bash", str(tmp_path / "job.slurm")], env=env, check=True)
    assert (tmp_path / "calls").read_text().rstrip("\0\n").split("\0") == ["srun", "bash", "vllm/launch.sh"]
    assert "serve.slurm" not in files_of(tp=8)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (
            {"prefill_sm_frac": 0.4},
            "semi-PD: prefill and decode on shares of the same SMs: status: research-only, code at infinigence/Semi-PD",
        ),
        ({"policy": "layered"}, "layered prefill: status: research-only, code at scale-snu/layered-prefill; nearest: chunked prefill"),
        (
            {"speculation": Speculation(controller="goodput")},
            "speculation length chosen by goodput each step (SmartSpec): status: research-only",
        ),
        ({"autoscale": Autoscale(min_replicas=2, max_replicas=6)}, "autoscaling between 2 and 6 replicas: status: not emitted"),
    ],
)
def test_what_no_engine_does_is_said_and_the_nearest_runs(parts: dict[str, Any], line: str) -> None:
    files = files_of(tp=1, **parts)
    assert line in files["README.md"]
    assert "the prediction is not theirs" in files["README.md"]
    assert "vllm/serve.sh" in files


def test_attention_apart_from_ffn_is_emitted_for_no_engine() -> None:
    files = files_of("deepseek-v3", dp=8, ep=8, weight_dtype="fp8_block", attention_ffn=AttentionFfnSplit(n_ffn_gpus=8), n_gpus=16)
    assert not [name for name in files if name.startswith(tuple(engines()))]
    text = files["README.md"]
    assert "attention-FFN disaggregation (AFD): status: research-only, code at stepfun-ai/StepMesh" in text
    assert "No engine can express this deployment" in text
    assert "| vLLM | attention apart from FFN |" in text
    assert "| SGLang | attention apart from FFN |" in text


def test_synthetic_acceptance_is_the_chance_of_a_whole_prefix() -> None:
    """a, a², a³ without spread; with one, moments of the Beta of that mean and standard deviation."""
    plain = synthetic_acceptance(Speculation(draft_tokens=3, accept_frac=0.7))
    assert plain == {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": [0.7, 0.49, 0.343]}
    spread = synthetic_acceptance(Speculation(draft_tokens=3, accept_frac=0.5, accept_spread_frac=0.5 / 3**0.5))
    assert spread["synthetic_acceptance_rates"] == pytest.approx([1 / 2, 1 / 3, 1 / 4], abs=1e-6)  # uniform: E[x^k] = 1/(k+1)
    certain = synthetic_acceptance(Speculation(draft_tokens=3, accept_frac=0.5, accept_spread_frac=0.5))
    assert certain["synthetic_acceptance_rates"] == [0.5, 0.5, 0.5]  # all or nothing
    assert "0.7, 0.49, 0.343, 0.2401, 0.16807" in files_of(speculation=Speculation(gamma_by_batch=((4, 5),)))["README.md"]
