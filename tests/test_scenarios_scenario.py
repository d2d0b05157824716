"""Scenarios from flags and TOML: defaults, overrides, and a sentence for every value that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from roofplan.scenarios.errors import BadFile, BadInput
from roofplan.scenarios.scenario import MAX_SEQ, Scenario, parse_seq, read_scenario


def test_sequence_lengths_are_binary_and_max_is_free() -> None:
    assert parse_seq("1M") == 1024**2
    assert parse_seq(" 128K ") == 131072
    assert parse_seq("1e6") == 1_000_000
    assert parse_seq("MAX") == MAX_SEQ


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('model = "llama3-8b"\nn_gpus = 8\nseq = "64K"\nhost_ram = "1.9 TB"\nprice = 2.5\nallow = ["quant"]\n')
    plain = read_scenario(file, {})
    assert (plain.n_gpus, plain.seq_tokens, plain.host_ram_bytes, plain.price_usd_per_h) == (8, 65536, 1.9e12, 2.5)
    assert plain.allows_quant
    over = read_scenario(file, {"n_gpus": 16, "seq_tokens": 1024, "model": None})
    assert (over.model, over.n_gpus, over.seq_tokens) == ("llama3-8b", 16, 1024)


def test_seq_max_and_objective_max_seq_imply_each_other(tmp_path: Path) -> None:
    base = {"model": "llama3-8b", "n_gpus": 8}
    assert read_scenario(None, base | {"seq_tokens": MAX_SEQ}).objective == "max-seq"
    assert read_scenario(None, base | {"objective": "max-seq"}).seq_tokens == MAX_SEQ
    file = tmp_path / "s.toml"
    file.write_text('seq = "max"\n')
    assert read_scenario(file, base).objective == "max-seq"
    file.write_text('objective = "max-seq"\n')
    assert read_scenario(file, base).seq_tokens == MAX_SEQ


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"n_gpus": 0}, "n_gpus=0 must be between 1 and 1,000,000"),
    ({"n_gpus": -8}, "n_gpus=-8 must be between 1 and 1,000,000"),
    ({"n_gpus": 10**9}, "n_gpus=1,000,000,000 must be between 1 and 1,000,000"),
    ({"seq_tokens": -1}, "seq_tokens=-1 must be between 0 and 1,000,000,000,000"),
    ({"global_batch": -4}, "global_batch=-4 must be between 0 and 1,000,000,000"),
    ({"micro_batch": 10**6}, "micro_batch=1,000,000 must be between 0 and 4,096"),
    ({"gpus_per_node": -1}, "gpus_per_node=-1 must be between 0 and 1,024"),
    ({"top": 0}, "top=0 must be between 1 and 100"),
    ({"objective": "speed"}, "objective='speed' is not known; legal: time, cost, throughput, max-seq"),
    ({"task": "dance"}, "task='dance' is not known; legal: train, serve, rl"),
    ({"optimizer": "adagrad"}, "optimizer='adagrad' is not known; legal: adamw"),
    ({"precision": "fp4"}, "precision='fp4' is not known; legal: bf16, fp16, fp8"),
    ({"precision": "fp8"}, "precision=fp8 changes the numerics; add --allow quant"),
    ({"host_ram_bytes": float("nan")}, "host_ram_bytes=nan must be finite"),
    ({"price_usd_per_h": float("inf")}, "price_usd_per_h=inf must be finite"),
    ({"price_usd_per_h": -1.0}, "price_usd_per_h=-1.0 must be finite and not negative"),
    ({"allow": ("lossy",)}, "allow='lossy' is not known; legal: quant, lossy:<points 0 to 100>, retrain"),
    ({"allow": ("lossy:200",)}, "allow='lossy:200' is not known"),
    ({"index_bits": 16}, "index_bits=16 is not a kernel's index width; legal: 0 (no limit), 31, 32, 63"),
    ({"objective": "max-seq"}, "objective max-seq looks for the sequence itself; drop seq=8,192 or write seq=max"),
    ({"seq_tokens": 0}, "seq=max looks for the longest sequence; drop objective=time"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD_VALUES, ids=lambda x: str(x)[:40])
def test_bad_values_are_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        Scenario(**({"model": "llama3-8b", "n_gpus": 8} | changed))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lossy_points_are_read() -> None:
    assert Scenario(model="m", n_gpus=1, allow=("lossy:1.5", "retrain")).allow == ("lossy:1.5", "retrain")


def test_missing_model_or_gpus() -> None:
    with pytest.raises(BadInput, match="no model given; add --model"):
        read_scenario(None, {"n_gpus": 8})
    with pytest.raises(BadInput, match="no n_gpus given; add --gpus"):
        read_scenario(None, {"model": "llama3-8b"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('modle = "x"', "unknown key 'modle'; did you mean model"),
        ("seq = 1.5", "must be a whole number"),
        ("n_gpus = -2", "must be finite and not negative"),
        ('host_ram = "1.9 TW"', "is not a number with a unit of bytes"),
        ("n_gpus = [8]", "is not a whole number"),
        ("model = ", "not valid TOML"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(BadFile) as caught:
        read_scenario(file, {"model": "llama3-8b", "n_gpus": 8})
    assert sentence in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read: No such file"):
        read_scenario(tmp_path / "none.toml", {})
