"""Calibration files: read, checked, transferred to kin; every way a file can be wrong is one sentence."""

from __future__ import annotations

import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import TRANSFER_ERROR_FACTOR, load_calibration, memory_frac_of, read_calibration, transfer
from roofplan.scenarios.errors import BadFile, UnknownName
from roofplan.scenarios.load import names

TEXT = """
[families."gemm.bf16"]
source = "made up"
n_rows = 3
error = 0.1
p90_error = 0.2
coefficients = { launch_s = 1e-6 }
first = 0
step = 0.01
axes = [[1, 2], [8, 16, 32]]
interval_edges = [0, 0.001]
interval = [0.3, 0.1]
"""


def write(folder: Path, text: str = TEXT, codes: bytes = bytes([1, 1, 1, 2, 0, 254])) -> Path:
    path = folder / "card.toml"
    path.write_text(text)
    path.with_suffix(".xz").write_bytes(lzma.compress(codes))
    return path


def test_reads_tables_as_differences_along_the_first_axis(tmp_path: Path) -> None:
    calibration = read_calibration(write(tmp_path))
    table = calibration.correction(calibration.fit("gemm.bf16"))
    assert table == pytest.approx(np.array([[0.01, 0.01, 0.01], [0.03, 0.01, -0.01]]))


def test_first_of_several_names(tmp_path: Path) -> None:
    calibration = read_calibration(write(tmp_path))
    assert calibration.fit("gemm.fp8", "gemm.bf16").n_rows == 3
    with pytest.raises(UnknownName, match=r"unknown kernel family in the calibration of card 'gemm.fp8'"):
        calibration.fit("gemm.fp8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.replace("[8, 16, 32]", "[8, 32, 16]"), "every axis must hold ascending positive nodes"),
        (lambda t: t.replace("first = 0", "first = 1"), "its table needs cells 1 to 7, the packed file has 6"),
        (lambda t: t.replace("interval = [0.3, 0.1]", "interval = [0.3]"), "2 interval edges for 1 widths"),
        (lambda t: "codes = 1\n" + t, "codes belong in the .xz file beside it"),
        (lambda t: t.replace("n_rows", "rows"), "unknown key"),
    ],
)
def test_malformed_text(tmp_path: Path, change: object, sentence: str) -> None:
    with pytest.raises(BadFile, match=sentence):
        read_calibration(write(tmp_path, change(TEXT)))  # type: ignore[operator]


def test_malformed_tables(tmp_path: Path) -> None:
    path = write(tmp_path)
    packed = path.with_suffix(".xz")
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-20])
    with pytest.raises(BadFile, match="truncated"):
        read_calibration(path)
    packed.write_bytes(b"not xz at all")
    with pytest.raises(BadFile, match="not readable calibration tables"):
        read_calibration(path)
    packed.write_bytes(lzma.compress(bytes(2**23 + 8)))
    with pytest.raises(BadFile, match="holds more than"):
        read_calibration(path)
    packed.write_bytes(bytes(2**20 + 1))
    with pytest.raises(BadFile, match="over the limit"):
        read_calibration(path)


def test_transfer_widens_every_error(tmp_path: Path) -> None:
    own = read_calibration(write(tmp_path))
    h100, h20 = registry.accelerator("h100-sxm"), registry.accelerator("h20")
    lent = transfer(own, h100, h20)
    assert (lent.name, lent.transferred_from) == ("h20", "card")
    assert lent.fit("gemm.bf16").error_frac == pytest.approx(0.1 * TRANSFER_ERROR_FACTOR)
    assert lent.fit("gemm.bf16").interval_frac == pytest.approx((0.3 * TRANSFER_ERROR_FACTOR, 0.1 * TRANSFER_ERROR_FACTOR))


@pytest.mark.parametrize("card", sorted(names("hardware")))
def test_every_card_has_a_calibration_or_a_measured_kin(card: str) -> None:
    calibration = load_calibration(registry.accelerator(card))
    assert calibration.name == card
    assert (calibration.transferred_from == "") == (card in names("calibrations"))
    assert calibration.fit("gemm.bf16").n_rows > 600


@pytest.mark.parametrize("card", sorted(names("calibrations")))
def test_shipped_files_are_small_and_physical(card: str) -> None:
    path = names("calibrations")[card]
    assert path.stat().st_size + path.with_suffix(".xz").stat().st_size <= 300_000
    for key, fit in read_calibration(path).families.items():
        assert fit.source, key
        for name, value in fit.coefficients.items():
            if name.endswith("_frac") and name != "l2_frac":
                assert 0 < value <= 1, f"{card} {key} {name}"


def test_prefill_traffic_moves_with_the_sms_and_waves_with_the_peak() -> None:
    """H200 is H100 with faster memory: the same prefill takes the same time. B200 has 2.27 times the peak: waves are as much shorter."""
    h100, h200, b200 = (registry.accelerator(name) for name in ("h100-sxm", "h200", "b200"))
    own = load_calibration(h100)
    key = "attention.prefill.hd128"
    lent = transfer(own, h100, h200).fit(key).coefficients
    assert lent["memory_frac"] * h200.hbm_bytes_per_s == pytest.approx(own.fit(key).coefficients["memory_frac"] * h100.hbm_bytes_per_s)
    key = "attention.decode.hd128"
    ratio = transfer(own, h100, b200).fit(key).coefficients["wave_s"] / own.fit(key).coefficients["wave_s"]
    assert ratio == pytest.approx(989.4 / 2250)
    assert transfer(own, h100, registry.accelerator("h20")).fit(key).coefficients["wave_s"] == own.fit(key).coefficients["wave_s"]


def test_memory_fractions_move_with_the_bytes_an_sm_must_draw() -> None:
    """By hand from the data files; checks the rule was not fitted on: H200 from H100, copies on an RTX 4090 (918 to 924 of 1008 GB/s)."""
    a100, a40, h100, h200, rtx, mi300x = map(registry.accelerator, ("a100-80gb-sxm", "a40", "h100-sxm", "h200", "rtx4090", "mi300x"))
    assert memory_frac_of(a40, a100, 0.79) == pytest.approx(0.80, abs=0.005)
    assert memory_frac_of(h200, h100, 0.885) == pytest.approx(0.842, abs=0.015)
    stream = load_calibration(rtx).fit("stream").coefficients["memory_frac"]
    assert stream == pytest.approx(921 / 1008, abs=0.02)
    assert memory_frac_of(rtx, a100, 0.99) == 1
    assert memory_frac_of(mi300x, h100, 0.7) == 0.7


@pytest.mark.parametrize("card", ["a10g", "a40", "l4", "l40s", "t4"])
def test_inline_ecc_costs_memory_and_bandwidth(card: str) -> None:
    gpu = registry.accelerator(card)
    assert gpu.inline_ecc_frac == 1 / 16
    assert load_calibration(gpu).fit("stream").coefficients["memory_frac"] < 1 - 1 / 16


def test_no_part_of_peak_is_lent_beyond_what_a_vendor_reaches():
    """AMD's library reaches 708 of an MI300X's 1,307 TFLOP/s; a card without such a figure takes the lender's fraction of peak."""
    card, lender = registry.accelerator("mi300x"), load_calibration(registry.accelerator("h100-sxm"))
    lent, free = load_calibration(card), transfer(lender, registry.accelerator("h100-sxm"), replace(card, reached_bf16_flops_per_s=0.0))
    slower = 708 / (1307.4 * lender.families["gemm.bf16"].coefficients["compute_frac"])
    for key in ("gemm.bf16", "attention.prefill.hd128"):
        assert free.families[key].coefficients["compute_frac"] == lender.families[key].coefficients["compute_frac"]
        assert lent.families[key].coefficients["compute_frac"] == pytest.approx(slower * free.families[key].coefficients["compute_frac"])
    assert lent.families["gemm.bf16"].coefficients["compute_frac"] == pytest.approx(708 / 1307.4)
    above = transfer(lender, registry.accelerator("h100-sxm"), replace(card, reached_bf16_flops_per_s=1300e12))
    assert above.families["gemm.bf16"].coefficients["compute_frac"] == free.families["gemm.bf16"].coefficients["compute_frac"]
