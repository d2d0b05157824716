"""Quantities and token counts: every unit against its SI value, and sentences for what is not one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.units import UNITS, parse_quantity, parse_tokens, show_bytes, show_tokens, suffix_of


@pytest.mark.parametrize(
    ("text", "suffix", "value"),
    [
        ("141 GB", "_bytes", 141e9),
        ("80 GiB", "_bytes", 80 * 2**30),
        ("512MiB", "_bytes", 2**29),
        ("1_000 B", "_bytes", 1000.0),
        ("3.35 TB/s", "_bytes_per_s", 3.35e12),
        ("400 Gb/s", "_bytes_per_s", 50e9),
        ("989.4 TFLOP/s", "_flops_per_s", 989.4e12),
        ("2.5e3 GFLOP/s", "_flops_per_s", 2.5e12),
        ("12 us", "_s", 12e-6),
        ("3.5 µs", "_s", 3.5e-6),
        ("2 h", "_s", 7200.0),
        ("92 %", "_frac", 0.92),
        ("700 W", "_w", 700.0),
        ("1.2 kWh", "_j", 4.32e6),
        ("2.99 USD/h", "_usd_per_h", 2.99),
        ("1.98 GHz", "_hz", 1.98e9),
        ("0 s", "_s", 0.0),
    ],
)
def test_quantity(text: str, suffix: str, value: float) -> None:
    assert parse_quantity(text, suffix) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "suffix"),
    [
        ("hbm_bytes", "_bytes"),
        ("hbm_bytes_per_s", "_bytes_per_s"),
        ("bytes_per_s", "_bytes_per_s"),
        ("bf16_flops_per_s", "_flops_per_s"),
        ("spot_usd_per_h", "_usd_per_h"),
        ("step_overhead_s", "_s"),
        ("latency_s", "_s"),
        ("n_heads", ""),
        ("aliases", ""),
        ("n_sms", ""),
        ("kernels_per_layer", ""),
    ],
)
def test_suffix(field: str, suffix: str) -> None:
    assert suffix_of(field) == suffix


NOT_QUANTITIES = ["", "GB", "1__0 GB", "1_ GB", "_1 GB", "1 GB 2", "1e GB", "nan GB", "inf GB", "٣ GB", "1 gb", "1 GB/s", "0x10 GB"]


@pytest.mark.parametrize("text", NOT_QUANTITIES)
def test_what_is_not_a_quantity(text: str) -> None:
    with pytest.raises(BadInput, match="legal units: B, kB"):
        parse_quantity(text, "_bytes")


@pytest.mark.parametrize("text", ["-1 GB", "1e999 GB"])
def test_quantity_out_of_range(text: str) -> None:
    with pytest.raises(BadInput, match="must be finite and not negative"):
        parse_quantity(text, "_bytes")


@given(text=st.text(max_size=40), suffix=st.sampled_from(sorted(UNITS)))
def test_any_text_is_a_finite_number_or_bad_input(text: str, suffix: str) -> None:
    try:
        assert 0 <= parse_quantity(text, suffix) < float("inf")
    except BadInput as error:
        assert len(str(error)) < 300


@given(value=st.floats(min_value=0, max_value=1e6), suffix=st.sampled_from(sorted(UNITS)), data=st.data())
def test_every_unit_scales(value: float, suffix: str, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(UNITS[suffix])))
    assert parse_quantity(f"{value!r} {unit}", suffix) == value * UNITS[suffix][unit]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1M", 2**20), ("128K", 131072), ("128k", 131072), ("1.5M", 3 * 2**19), ("1e6", 10**6), ("131072", 131072), (" 15.5M ", 16252928)],
)
def test_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1G", "1e13", "9" * 400, "1e999", "nan", "K", "1 000", "٣"])
def test_what_is_not_a_token_count(text: str) -> None:
    with pytest.raises(BadInput, match="is not a"):
        parse_tokens(text)


@given(st.text(max_size=30))
def test_any_text_is_tokens_or_bad_input(text: str) -> None:
    try:
        assert 1 <= parse_tokens(text) <= 10**12
    except BadInput as error:
        assert str(error)


@given(st.integers(min_value=1, max_value=10**12))
def test_tokens_as_written(n: int) -> None:
    assert parse_tokens(str(n)) == n


def test_show() -> None:
    assert show_tokens(2**20) == "1,048,576 (1M)"
    assert show_tokens(131072) == "131,072 (128K)"
    assert show_tokens(1000) == "1,000"
    assert show_bytes(80 * 2**30) == "80.0 GiB"
