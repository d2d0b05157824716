"""The parts of the emitted scripts, one by one: what is recomputed, what stays exact, which tokens a rank reads."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .harness import run_ranks, run_script, torch, transformers
from .plans import job_of, write_deepspeed


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    write_deepspeed(tmp_path, job_of(dp=2, zero_stage=3))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("parts", None)
    import parts  # type: ignore[import-not-found]

    yield parts
    sys.modules.pop("parts", None)


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += "scaled_dot_product" in func.name() and "backward" not in func.name()
        return func(*args, **(kwargs or {}))


def gradients(parts: Any, **plan: Any) -> tuple[dict[str, Any], int]:
    """Gradients of a tiny Llama under these memory options, and how often an attention kernel ran forward (2 layers)."""
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    parts.save_memory(model, {"recompute": "none", "recompute_layers": -1, "offload_activations": 0, "tiled_mlp": 0} | plan)
    wrapped = parts.WithLoss(model, plan.get("fused_loss", 0))
    tokens = torch.arange(96).reshape(1, 96) % 64
    with CountAttention() as count:
        wrapped(tokens, torch.arange(96)[None], tokens.roll(-1)).backward()
    return {name: p.grad for name, p in model.named_parameters()}, count.n


@pytest.mark.parametrize(
    ("plan", "attention_runs"),
    [
        ({"recompute": "full"}, 4),
        ({"recompute": "full", "recompute_layers": 1}, 3),
        ({"recompute": "full", "offload_activations": 1, "tiled_mlp": 1, "fused_loss": 1}, 4),
        ({"recompute": "remat"}, 2),
        ({"recompute": "remat", "offload_activations": 1}, 2),
        ({"tiled_mlp": 1, "fused_loss": 1}, 2),
    ],
)
def test_memory_options_change_no_gradient(parts: Any, plan: dict[str, Any], attention_runs: int) -> None:
    """Full recomputation runs each layer's attention twice, remat once; gradients stay those of the plain model."""
    wanted, plain_runs = gradients(parts)
    assert plain_runs == 2
    found, runs = gradients(parts, **plan)
    assert runs == attention_runs
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, rtol=1e-5, atol=1e-7), name


def test_every_token_is_read_once(parts: Any, tmp_path: Path) -> None:
    """Over data ranks, sequence ranks, micro-batches and steps, each token of the file is one input and the next one's label."""
    seq, plan = 8, {"micro_batch": 2, "grad_accum": 2, "dp": 3, "cp": 2}
    np.save(tmp_path / "tokens.npy", np.arange(2 * 12 * seq + 1))
    tokens = parts.Tokens(str(tmp_path / "tokens.npy"), 1000, seq)
    seen: list[int] = []
    for step in range(2):
        for micro in range(2):
            for rank in range(6):
                batch = tokens.batch(step, micro, plan=plan, dp_rank=rank // 2, cp_rank=rank % 2, device="cpu")
                seen += batch["input_ids"].flatten().tolist()
                assert (batch["labels"] == batch["input_ids"] + 1).all()
                assert (batch["position_ids"] == batch["input_ids"] % seq).all()
    assert sorted(seen) == list(range(2 * 12 * seq))


def test_bin_files_and_short_files(parts: Any, tmp_path: Path) -> None:
    np.arange(20, dtype=np.uint16).tofile(tmp_path / "small.bin")
    inputs, labels = parts.Tokens(str(tmp_path / "small.bin"), 1000, 8).read(1, 2, 5)
    assert inputs.tolist() == [10, 11, 12]
    assert labels.tolist() == [11, 12, 13]
    with pytest.raises(SystemExit, match="holds 20 tokens; one sequence needs 33"):
        parts.Tokens(str(tmp_path / "small.bin"), 1000, 32)


@pytest.mark.parametrize("stage", [1, 3])
def test_rope_frequencies_stay_fp32_under_bf16(stage: int, tmp_path: Path) -> None:
    """In bf16 a RoPE frequency is off by up to 0.4 %, thousands of radians at position 1M; ds_config.json keeps it in fp32."""
    write_deepspeed(tmp_path, job_of(dp=2, zero_stage=stage))
    probe = (
        "import parts, deepspeed\n"
        "made = deepspeed.initialize\n"
        "def remember(**kw):\n"
        "    engine, *rest = made(**kw)\n"
        "    print('dtypes', {n.split('.')[-1]: str(b.dtype) for n, b in engine.module.named_buffers()})\n"
        "    print('weights', {str(p.dtype) for p in engine.module.parameters()})\n"
        "    return engine, *rest\n"
        "deepspeed.initialize = remember\n"
    )
    (tmp_path / "train.py").write_text(probe + (tmp_path / "train.py").read_text())
    logs = run_ranks(2, tmp_path, lambda rank: run_script(tmp_path, "train.py", "--tiny", "--steps", "1"))
    dtypes = re.search(r"^dtypes (.*)$", logs[0], re.MULTILINE)
    assert dtypes is not None
    assert json.loads(dtypes.group(1).replace("'", '"'))["inv_freq"] == "torch.float32"
    assert "weights {'torch.bfloat16'}" in logs[0]
