"""The checker itself: each kind of defect it must see, planted in a small copy kernel."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="kernels need torch")
import torch
from roofplan.kernels.check import check_one, relative_error
from roofplan.kernels.draw import GUARD_ELEMENTS, Draw, poison
from roofplan.kernels.spec import Config, Inputs, KernelSpec, Shape, grid


def inputs_of(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    n = int(shape["n"])
    kind = {"float32": torch.float32, "float16": torch.float16}[dtype]
    return {"x": draw.normal(n, dtype=kind), "y": draw.empty(n, dtype=kind)}


def right(inputs: Inputs, config: Config) -> None:
    inputs["y"].copy_(inputs["x"] * 2)


def spec(run: object) -> KernelSpec:
    return KernelSpec(
        name="twice", family="test", dtypes=("float32",), outputs=("y",), make_inputs=inputs_of, run=run,  # type: ignore[arg-type]
        reference=lambda inputs: {"y": inputs["x"].double() * 2}, flops=lambda s, d: 0.0, moved_bytes=lambda s, d: 8.0 * int(s["n"]),
        shapes=grid(n=(1000,)), checks=grid(n=(1000,)),
    )  # fmt: skip


def faulty(kind: str) -> object:
    def run(inputs: Inputs, config: Config) -> None:
        x, y = inputs["x"], inputs["y"]
        if kind == "one element left out":
            y[:-1] = x[:-1] * 2
        elif kind == "one element wrong":
            right(inputs, config)
            y[500] += 1
        elif kind == "writes past the end":
            right(inputs, config)
            y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(1.0)
        elif kind == "reads past the end":
            y.copy_(2 * x.as_strided(x.shape, (1,), x.storage_offset() + 1))
        elif kind == "changes its input":
            right(inputs, config)
            x[3] = 0
        elif kind == "rounds too early":
            y.copy_((x.half() * 2).float())

    return run


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_right_kernel_passes(dtype: str) -> None:
    result = check_one(spec(right), {"n": 1000}, dtype, {}, 1, "cpu")
    assert result.ok
    assert result.tolerance > 0


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("one element left out", ""), ("one element wrong", ""), ("reads past the end", ""), ("rounds too early", ""),
        ("writes past the end", "wrote outside its tensors"), ("changes its input", "changed its input x"),
    ],
)  # fmt: skip
def test_each_planted_defect_is_seen(kind: str, fault: str) -> None:
    result = check_one(spec(faulty(kind)), {"n": 1000}, "float32", {}, 1, "cpu")
    assert not result.ok
    assert result.fault == fault


def test_fresh_seeds_give_fresh_inputs_and_equal_seeds_equal_ones() -> None:
    a, b, c = (Draw(s, "cpu").normal(64, dtype=torch.float32) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert (a != 0).all()


def test_guarded_tensors_are_aligned_and_fenced() -> None:
    draw = Draw(0, "cpu", guard=True)
    t = draw.empty(7, 5, dtype=torch.float16)
    assert t.data_ptr() % 16 == 0
    assert torch.isnan(t).all()
    assert t.storage_offset() == GUARD_ELEMENTS
    assert not draw.overwritten()
    t.fill_(1)
    assert not draw.overwritten()
    t.as_strided((1,), (1,), t.storage_offset() - 1).fill_(3.0)
    assert draw.overwritten()


def test_the_meta_device_takes_no_memory() -> None:
    t = Draw(0, "meta").normal(2**20, 2**20, dtype=torch.bfloat16)
    assert t.device.type == "meta"


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_poison_is_not_a_number(kind: str) -> None:
    t = torch.zeros(8, dtype=getattr(torch, kind))
    poison(t)
    assert torch.isnan(t.float()).all()


def test_relative_error() -> None:
    ref = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(ref.clone(), ref) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), ref) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, float("nan")]), ref) == float("inf")
    assert relative_error(torch.tensor([3.0]), ref) == float("inf")
