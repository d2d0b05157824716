"""Which fit prices a call: number formats by kin, attention by head dimension, window and cache format, latents apart."""

from __future__ import annotations

import pytest
from roofplan.costmodels.lookup import attention_keys, format_keys

KNOWN = (
    "gemm.bf16", "attention.prefill.hd64", "attention.prefill.hd128", "attention.prefill.hd128.fp8", "attention.prefill.hd128.w128",
    "attention.prefill.hd128.w8192", "attention.decode.hd128", "mla.prefill", "mla.decode", "mla.decode.fp8",
)  # fmt: skip


def test_formats() -> None:
    assert format_keys("gemm", "bf16") == ("gemm.bf16", "gemm.fp8")
    assert format_keys("gemm", "fp16")[:2] == ("gemm.fp16", "gemm.bf16")
    assert format_keys("gemm", "mxfp4")[:2] == ("gemm.mxfp4", "gemm.nvfp4")


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (("prefill", 128, 128, 0, "bf16"), "attention.prefill.hd128"),
        (("prefill", 128, 128, 0, "fp8"), "attention.prefill.hd128.fp8"),
        (("prefill", 80, 80, 0, "bf16"), "attention.prefill.hd64"),
        (("prefill", 96, 96, 0, "bf16"), "attention.prefill.hd128"),
        (("prefill", 128, 128, 256, "bf16"), "attention.prefill.hd128.w128"),
        (("prefill", 128, 128, 4096, "bf16"), "attention.prefill.hd128.w8192"),
        (("prefill", 128, 128, 131072, "bf16"), "attention.prefill.hd128"),
        (("decode", 576, 512, 0, "bf16"), "mla.decode"),
        (("decode", 576, 512, 0, "fp8"), "mla.decode.fp8"),
        (("prefill", 192, 128, 0, "bf16"), "mla.prefill"),
        (("decode", 256, 256, 0, "bf16"), "attention.decode.hd128"),
    ],
)
def test_attention(call: tuple[str, float, float, float, str], key: str) -> None:
    assert attention_keys(*call, KNOWN) == (key,)


def test_nothing_known() -> None:
    assert attention_keys("decode", 128, 128, 0, "bf16", ("gemm.bf16",)) == ("attention.decode",)
