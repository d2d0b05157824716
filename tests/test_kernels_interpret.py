"""Every kernel in Triton's interpreter against float64, on fresh random inputs with poisoned outputs and guard bands.

The interpreter is chosen when a kernel is defined, so this runs in processes of its own. It is wrong in bf16 and in fp8 stores: those are
left to a GPU.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

pytest.importorskip("torch", reason="kernels need torch")
pytest.importorskip("triton", reason="kernels need triton")
from kernel_processes import rows_by_kernel
from roofplan.kernels.spec import all_specs

SEED = int(os.environ.get("ROOFPLAN_SEED", random.SystemRandom().randrange(10**6)))

KERNELS = [name for name, spec in all_specs().items() if spec.check_dtypes]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("interpret")
    return rows_by_kernel("roofplan.kernels.check", [str(SEED)], KERNELS, folder, {"TRITON_INTERPRET": "1"})


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_its_float64_reference(name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    spec = all_specs()[name]
    rows = results[name]
    assert len(rows) == len(spec.checks) * len(spec.check_dtypes)
    for row in rows:
        case = f"{row['dtype']} {row['shape']} {row['config']} (ROOFPLAN_SEED={SEED})"
        assert not row["fault"], f"{case}: {row['fault']}"
        assert row["error"] <= row["tolerance"] <= 5e-3, f"{case}: error {row['error']:.2e} over {row['tolerance']:.0e}"
