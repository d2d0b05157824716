"""Every Triton kernel compiled for sm_80, sm_90 and sm_100 as it would be launched there; no GPU needed, no claim on speed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="kernels need torch")
pytest.importorskip("triton", reason="kernels need triton")
from kernel_processes import rows_by_kernel
from roofplan.kernels.aot import CAPABILITIES, Resources
from roofplan.kernels.device import SMEM_LIMIT_BYTES
from roofplan.kernels.spec import TRITON, all_specs

MAX_STACK_BYTES = 128
"""Spilled registers a kernel's first configuration may have; more means a tile too large for the card."""
KERNELS = [name for name, spec in all_specs().items() if spec.framework == TRITON]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return rows_by_kernel("roofplan.kernels.aot", [], KERNELS, tmp_path_factory.mktemp("aot"), {})


@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_and_fits_on_every_card_it_supports(name: str, compiled: dict[str, list[dict[str, Any]]]) -> None:
    spec = all_specs()[name]
    wanted = {c for c in CAPABILITIES if any(spec.supports(d, c) for d in spec.dtypes)}
    rows = compiled[name]
    assert {row["capability"] for row in rows} == wanted
    for row in rows:
        where = f"{row['function']} on sm_{row['capability']} {row['config']}"
        assert not row["fault"], f"{where}: {row['fault']}"
        assert row["smem_bytes"] <= SMEM_LIMIT_BYTES[row["capability"]], where
        assert 0 < row["registers"] <= 255, where
        assert row["registers"] * row["threads"] <= 65_536, where
        assert row["stack_bytes"] <= MAX_STACK_BYTES, f"{where} spills {row['stack_bytes']} bytes"
        assert row["fits"]


def test_limits_bite() -> None:
    good = Resources(
        kernel="k", function="f", dtype="float16", capability=80, config={}, registers=128, stack_bytes=0, smem_bytes=166_912, threads=256
    )
    assert good.fits
    assert not replace(good, smem_bytes=166_913).fits
    assert replace(good, smem_bytes=166_913, capability=90).fits
    assert not replace(good, registers=255, threads=512).fits
    assert not replace(good, fault="CompilationError").fits
