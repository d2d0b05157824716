"""Moving bytes: within the GPU's memory, and between pinned host memory and the GPU, one way and both ways at once."""

from __future__ import annotations

import torch

from .draw import Draw
from .spec import TORCH, Config, Inputs, KernelSpec, Shape, grid

_SIZES = tuple(2**i for i in range(12, 31, 2))


def _device_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    n = int(shape["num_bytes"])
    return {"src": draw.integers(0, 256, n, dtype=torch.uint8), "dst": draw.empty(n, dtype=torch.uint8)}


def _device_run(inputs: Inputs, config: Config) -> None:
    inputs["dst"].copy_(inputs["src"])


def _device_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {"dst": inputs["src"].clone()}


def _device_bytes(shape: Shape, dtype: str) -> float:
    """Each byte read once and written once."""
    return 2.0 * int(shape["num_bytes"])


def _host_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    n, direction = int(shape["num_bytes"]), str(shape["direction"])
    on_gpu = draw.device.type == "cuda"
    inputs: Inputs = {"direction": direction}
    for way in ("up", "down"):
        if direction in (way, "both"):
            host = torch.empty(n, dtype=torch.uint8, pin_memory=on_gpu)
            device = draw.integers(0, 256, n, dtype=torch.uint8)
            host.copy_(device.flip(0))
            src, dst = (host, device) if way == "up" else (device, host)
            inputs |= {f"{way}_src": src.clone() if src is device else src, f"{way}_dst": dst}
    if on_gpu and direction == "both":
        inputs["stream"] = torch.cuda.Stream()
    return inputs


def _host_run(inputs: Inputs, config: Config) -> None:
    direction, stream = inputs["direction"], inputs.get("stream")
    if direction == "both" and stream is not None:
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            inputs["down_dst"].copy_(inputs["down_src"], non_blocking=True)
        inputs["up_dst"].copy_(inputs["up_src"], non_blocking=True)
        here.wait_stream(stream)
        return
    for way in ("up", "down"):
        if direction in (way, "both"):
            inputs[f"{way}_dst"].copy_(inputs[f"{way}_src"], non_blocking=True)


def _host_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {f"{way}_dst": inputs[f"{way}_src"].clone() for way in ("up", "down") if f"{way}_src" in inputs}


def _host_bytes(shape: Shape, dtype: str) -> float:
    """Bytes of one direction: the link is counted per direction."""
    return float(int(shape["num_bytes"]))


def _no_flops(shape: Shape, dtype: str) -> float:
    """A copy computes nothing."""
    return 0.0


def _host_spec(direction: str, outputs: tuple[str, ...]) -> KernelSpec:
    return KernelSpec(
        name=f"host_copy_{direction}", family="host_copy", framework=TORCH, dtypes=("int8",), outputs=outputs, make_inputs=_host_inputs,
        run=_host_run, reference=_host_reference, flops=_no_flops, moved_bytes=_host_bytes,
        shapes=grid(num_bytes=_SIZES[:-1], direction=(direction,)), checks=grid(num_bytes=(1000,), direction=(direction,)),
        check_dtypes=("int8",), channel="host",
    )  # fmt: skip


SPECS = (
    KernelSpec(
        name="device_copy",
        family="copy",
        framework=TORCH,
        dtypes=("int8",),
        outputs=("dst",),
        make_inputs=_device_inputs,
        run=_device_run,
        reference=_device_reference,
        flops=_no_flops,
        moved_bytes=_device_bytes,
        shapes=grid(num_bytes=_SIZES),
        checks=grid(num_bytes=(1, 4097)),
        check_dtypes=("int8",),
    ),
    _host_spec("up", ("up_dst",)),
    _host_spec("down", ("down_dst",)),
    _host_spec("both", ("up_dst", "down_dst")),
)
