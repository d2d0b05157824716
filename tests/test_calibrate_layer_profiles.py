"""Layer profiles of a vLLM engine: shapes from model and degree, rows that L2 served left out, clear refusals, the fits made of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from roofplan.calibrate.check import check_rows
from roofplan.calibrate.cli import calibrate
from roofplan.calibrate.fitting import fit_folder
from roofplan.calibrate.imports import import_tables
from roofplan.calibrate.layer_profiles import profile_tables
from roofplan.calibrate.rows import beside_prompts, families, few_long, load_tables
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import TRANSFER_ERROR_FACTOR, borrowed, load_calibration
from roofplan.scenarios.errors import BadFile

SAMPLE = Path(__file__).parent / "data" / "layer_profiles"
LLAMA = Path("RTX4090/meta-llama/Llama-3.1-8B/bf16")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    import_tables(SAMPLE, out, origin="a public profile (MIT)")
    return out


def test_shapes_come_from_the_model_and_the_degree(tmp_path: Path) -> None:
    copy = tmp_path / LLAMA
    shutil.copytree(SAMPLE / LLAMA, copy)
    shutil.copytree(copy / "tp1", copy / "tp2")
    found = profile_tables(tmp_path)
    products = found["aic_gemm"]
    layers = {name: sorted({(n, k) for n, k in zip(part["n"], part["k"], strict=True)}) for name, part in products.groupby("kernel")}
    assert layers == {
        "qkv_proj": [(3072, 4096), (6144, 4096)], "o_proj": [(4096, 2048), (4096, 4096)],
        "gate_up_proj": [(14336, 4096), (28672, 4096)], "down_proj": [(4096, 7168), (4096, 14336)],
        "lm_head": [(64128, 4096), (128256, 4096)],
    }  # fmt: skip
    assert set(products["gpu"]) == {"rtx4090"}
    assert set(zip(found["attention_mixed"]["num_heads"], found["attention_mixed"]["num_kv_heads"], strict=True)) == {(32, 8), (16, 4)}


def test_attention_is_told_apart_by_what_shares_the_call() -> None:
    found = profile_tables(SAMPLE / LLAMA.parts[0])
    raw = pd.read_csv(SAMPLE / LLAMA / "tp1" / "attention.csv")
    alone, decode, mixed = found["aic_attention_context"], found["aic_attention_generation"], found["attention_mixed"]
    assert len(alone) + len(decode) + len(mixed) == len(raw)
    assert (decode["batch_size"].max(), decode["kv_len"].max()) == (128, 4096)
    assert sorted(set(alone["prefix_len"])) == [0, 4096]
    row = mixed[(mixed["seq_len"] == 256) & (mixed["prefix_len"] == 0)].iloc[0]
    own = raw[(raw["prefill_chunk"] == 256) & (raw["kv_prefill"] == 0) & (raw["n_decode"] == 0)]
    assert row["alone_us"] == own["time_us"].iloc[0]


def test_what_decodes_add_beside_a_prompt() -> None:
    """By hand: 100 us with decodes, 30 alone, an empty call of 8: 78 us; rows that add less than a quarter and pasts are left out."""
    frame = pd.DataFrame(
        {
            "prefix_len": [0, 0, 0, 64], "num_heads": 32, "num_kv_heads": 8, "alone_us": [30.0, 8.0, 400.0, 30.0],
            "latency_us": [100.0, 20.0, 450.0, 100.0],
        }
    )  # fmt: skip
    assert beside_prompts(frame)["latency_us"].tolist() == [78.0, 20.0]


def test_passes_by_the_bytes_they_move() -> None:
    """Llama-3.1-8B, 16 bits a token: SiLU reads 2 and writes 1 x 14,336, norms move 2 and 4 hidden widths, rotation 2 x 40 heads."""
    passes = profile_tables(SAMPLE / LLAMA.parts[0])["layer_pass"]
    row = passes[passes["latency_us"] == 75.388].iloc[0]
    assert (row["kernel"], row["num_bytes"]) == ("act_fn", 1024 * 3 * 14336 * 2)
    by_kernel = passes.groupby("kernel")["num_bytes"].min()
    assert by_kernel.to_dict() == {"act_fn": 86016, "layernorm": 3 * 4096 * 2, "rotary_emb": 2 * 40 * 128 * 2}


def test_calls_with_a_few_long_decodes() -> None:
    """512 fresh tokens beside 16 decodes, one of 2,048 cached tokens and 15 of 512: 608 on average; rows without prompts are left."""
    rows = profile_tables(SAMPLE / LLAMA.parts[0])["attention_uneven"]
    assert (rows["seq_len"] == 512).all()
    row = rows[(rows["batch_size"] == 16) & (rows["n_long"] == 1) & (rows["longest"] == 2048)].iloc[0]
    assert (row["kv_len"], row["even_us"], row["latency_us"], row["head_dim"]) == (608, 419.454, 570.484, 128)
    assert set(few_long(rows)["n_long"]) == {1, 2, 16}
    assert few_long(rows)["batch_size"][few_long(rows)["n_long"] == 16].min() == 128


def test_layers_that_l2_served_are_left_out() -> None:
    """Qwen3-30B's attention output, 16.8 MB of weights, takes 7.4 us where memory needs 10.5; its head is measured."""
    said: list[str] = []
    found = profile_tables(SAMPLE / "RTXPRO6000", said.append)
    assert set(found["aic_gemm"]["kernel"]) == {"lm_head"}
    assert any(line.startswith("o_proj of qwen3-30b-a3b-2507 tp1 left out") for line in said)


def test_experts_are_balanced_over_the_active_ones() -> None:
    experts = profile_tables(SAMPLE / "RTXPRO6000")["aic_moe"]
    assert set(experts["routing"]) == {"balanced"}
    row = experts[(experts["num_tokens"] == 16) & (experts["num_experts"] == 128)].iloc[0]
    assert (row["hidden_size"], row["inter_size"], row["topk"], row["latency_us"]) == (2048, 768, 8, pytest.approx(817.612))


BREAKS = {
    "gpu: NVIDIA GeForce RTX 4090\n": ("", "lacks gpu; a layer profile names gpu, model, variant and vllm_version"),
    "gpu: NVIDIA GeForce": ("gpu: Voodoo", "unknown GPU 'Voodoo RTX 4090'"),
    "meta-llama/Llama-3.1-8B": ("nobody/nothing", "unknown model 'nobody/nothing'"),
    "variant: bf16": ("variant: q4_k", "variant='q4_k' is not known; legal: bf16, fp16, fp8, each with -kvfp8 or without"),
}


@pytest.mark.parametrize("old", sorted(BREAKS))
def test_malformed_meta(tmp_path: Path, old: str) -> None:
    new, sentence = BREAKS[old]
    copy = tmp_path / LLAMA
    shutil.copytree(SAMPLE / LLAMA, copy)
    meta = copy / "meta.yaml"
    meta.write_text(meta.read_text().replace(old, new))
    with pytest.raises(BadFile, match=sentence):
        profile_tables(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("dense.csv", "time_us", "ms", "lacks the column time_us"),
        ("dense.csv", "qkv_proj,1,", "qkv_proj,one,", "column tokens must hold numbers from 0 up in every row"),
        ("attention.csv", "0,0,1,256,", "0,0,1,256,-", "column time_us must hold numbers from 0 up in every row"),
        ("per_sequence.csv", "lm_head,1,", "lm_head,1,0.0\nlm_head,2,", "column time_us must be positive in every row"),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, old: str, new: str, sentence: str) -> None:
    copy = tmp_path / LLAMA
    shutil.copytree(SAMPLE / LLAMA, copy)
    path = copy / "tp1" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadFile, match=sentence):
        profile_tables(tmp_path)


@pytest.mark.parametrize(("degree", "sentence"), [("tpx", "not a tensor-parallel degree"), ("tp3", "which tp=3 does not divide")])
def test_malformed_degrees(tmp_path: Path, degree: str, sentence: str) -> None:
    copy = tmp_path / LLAMA
    shutil.copytree(SAMPLE / LLAMA, copy)
    (copy / "tp1").rename(copy / degree)
    with pytest.raises(BadFile, match=sentence):
        profile_tables(tmp_path)


def test_the_command_says_one_sentence(tmp_path: Path) -> None:
    copy = tmp_path / "in" / LLAMA
    shutil.copytree(SAMPLE / LLAMA, copy)
    (copy / "tp1" / "attention.csv").unlink()
    program = [sys.executable, "-c", "from roofplan.cli import main; main()"]
    asked = [*program, "calibrate", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "attention.csv: no such measurement table" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    done = CliRunner().invoke(calibrate, ["import", str(SAMPLE), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert "attention_mixed: " in done.output


def test_a_fit_of_few_shapes_starts_from_the_kin(tables: Path) -> None:
    """Coefficients that the rows do not tell stay what the A100 lends; what was not measured is borrowed, marked, and says wider errors."""
    gpu = registry.accelerator("rtx4090")
    lent = borrowed(gpu)
    assert lent is not None
    bound = next(b for b in families(load_tables(tables), gpu, ["rtx4090"]) if b.key == "gemm.bf16")
    assert bound.start["k_fill"] == lent.fit("gemm.bf16").coefficients["k_fill"]
    assert bound.pull > 0
    (fitted,) = fit_folder(tables, ["rtx4090"], 0, 1)
    assert fitted.fit("gemm.bf16").lent_by == ""
    assert fitted.fit("gemm.bf16").coefficients["l2_frac"] == pytest.approx(lent.fit("gemm.bf16").coefficients["l2_frac"], rel=1e-3)
    assert fitted.fit("gemm.bf16").coefficients["memory_frac"] == pytest.approx(0.92, abs=0.05)
    assert "a public profile (MIT); vLLM 0.19.0" in fitted.sources["aic_gemm"]
    assert set(lent.families) <= set(fitted.families)
    assert fitted.fit("collective.all_reduce").lent_by == "a100-80gb-sxm"


@pytest.mark.parametrize("card", ["rtx4090", "rtx-pro-6000"])
def test_shipped_fits_price_the_sample(tables: Path, card: str) -> None:
    """Median error of each table within 6 % (passes 15 %); they are among the rows fitted, so this holds files and formulas together."""
    gpu = registry.accelerator(card)
    seen = set()
    for part in check_rows(load_tables(tables), gpu, [card]):
        if len(part.measured_s) > 2:
            seen.add(part.table)
            assert np.median(np.abs(part.predicted_s / part.measured_s - 1)) < (0.15 if part.family == "pass" else 0.06), part.family
    assert "aic_gemm" in seen


@pytest.mark.parametrize("card", ["rtx4090", "rtx-pro-6000"])
def test_shipped_fits_are_whole_and_mark_what_is_borrowed(card: str) -> None:
    own, lent = load_calibration(registry.accelerator(card)), borrowed(registry.accelerator(card))
    assert lent is not None
    assert set(lent.families) <= set(own.families)
    measured = {k for k, fit in own.families.items() if not fit.lent_by}
    assert {"gemm.bf16", "attention.prefill.hd128", "attention.decode.hd128", "attention.mixed.hd128"} <= measured
    for key in set(own.families) - measured:
        assert own.families[key].p90_error_frac == pytest.approx(lent.families[key].p90_error_frac, rel=1e-3), key
    a100 = load_calibration(registry.accelerator("a100-80gb-sxm"))
    assert own.fit("collective.p2p").error_frac == pytest.approx(TRANSFER_ERROR_FACTOR * a100.fit("collective.p2p").error_frac, rel=1e-3)
    assert own.correction(own.fit("collective.p2p")).shape == own.fit("collective.p2p").shape
    assert np.array_equal(own.correction(own.fit("collective.p2p")), a100.correction(a100.fit("collective.p2p")))
