"""Fresh random tensors with guard bands, so that reads and writes past the end of a tensor are caught."""

from __future__ import annotations

import torch

GUARD_ELEMENTS = 4096


def poison(tensor: torch.Tensor) -> None:
    """Fill with NaN (floats) or -1 (integers), so that an element nobody wrote is seen."""
    if tensor.dtype == torch.float8_e4m3fn:
        tensor.view(torch.uint8).fill_(0x7F)
    elif tensor.dtype.is_floating_point:
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.uint8:
        tensor.fill_(0xA5)
    else:
        tensor.fill_(-1)


class Draw:
    """Draws the tensors of one check or one measurement from one seed on one device.

    With ``guard`` every tensor lies between two poisoned bands: what reads past its end turns NaN, what writes past it is reported by
    ``overwritten``. On the ``meta`` device shapes and dtypes are made without memory, for compiling ahead of time.
    """

    def __init__(self, seed: int, device: str, guard: bool = False) -> None:
        self.device = torch.device(device)
        self.guard = GUARD_ELEMENTS if guard and device != "meta" else 0
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
        self._bands: list[tuple[torch.Tensor, torch.Tensor]] = []

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, poisoned when guarded."""
        if not self.guard:
            return torch.empty(shape, dtype=dtype, device=self.device)
        n = 1
        for size in shape:
            n *= size
        whole = torch.empty(n + 2 * self.guard, dtype=dtype, device=self.device)
        poison(whole)
        for band in (whole[: self.guard], whole[self.guard + n :]):
            self._bands.append((band.view(torch.uint8), band.view(torch.uint8).clone()))
        return whole[self.guard : self.guard + n].view(shape)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """Normal deviates times ``scale``, rounded to ``dtype``."""
        out = self.empty(*shape, dtype=dtype)
        if self._generator is not None:
            out.copy_(torch.randn(shape, generator=self._generator, device=self.device) * scale)
        return out

    def uniform(self, *shape: int, dtype: torch.dtype, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Uniform deviates in [low, high), rounded to ``dtype``."""
        out = self.empty(*shape, dtype=dtype)
        if self._generator is not None:
            out.copy_(torch.rand(shape, generator=self._generator, device=self.device) * (high - low) + low)
        return out

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Uniform integers in [low, high)."""
        out = self.empty(*shape, dtype=dtype)
        if self._generator is not None:
            out.copy_(torch.randint(low, high, shape, generator=self._generator, device=self.device))
        return out

    def permutation(self, n: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """A random order of 0 … n-1."""
        out = self.empty(n, dtype=dtype)
        if self._generator is not None:
            out.copy_(torch.randperm(n, generator=self._generator, device=self.device))
        return out

    def given(self, values: list[int] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The given values as a tensor of this draw's device."""
        source = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=dtype)
        out = self.empty(*source.shape, dtype=dtype)
        if self._generator is not None:
            out.copy_(source)
        return out

    def overwritten(self) -> bool:
        """Whether anything wrote into a guard band since the draw."""
        return any(not torch.equal(now, before) for now, before in self._bands)
