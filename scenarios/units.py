"""Quantities in data files are strings with units; in code they are SI floats whose suffix names the unit."""

from __future__ import annotations

import math
import re

from .errors import BadInput

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _byte_units() -> dict[str, float]:
    units = {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}
    return units | {f"{p}b": f / 8 for p, f in _DECIMAL.items() if p}


def _with(units: dict[str, float], tail: str) -> dict[str, float]:
    return {u + tail: f for u, f in units.items()}


UNITS: dict[str, dict[str, float]] = {
    "_bytes_per_s": _with(_byte_units(), "/s"),
    "_flops_per_s": {f"{p}FLOP/s": f for p, f in _DECIMAL.items()},
    "_usd_per_h": {"USD/h": 1.0},
    "_per_s": {"/s": 1.0},
    "_per_h": {"/h": 1.0},
    "_bytes": _byte_units(),
    "_flops": {f"{p}FLOP": f for p, f in _DECIMAL.items()},
    "_tokens": {"tokens": 1.0},
    "_frac": {"%": 0.01},
    "_usd": {"USD": 1.0},
    "_hz": {f"{p}Hz": f for p, f in _DECIMAL.items()},
    "_w": {"W": 1.0, "kW": 1e3, "MW": 1e6},
    "_j": {"J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6},
    "_s": _TIME,
}
"""Suffix of a field -> the units its data file may use. Longest suffixes first: the first match wins."""

_QUANTITY = re.compile(r"\s*([-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(\S*)\s*", re.ASCII)


def suffix_of(field: str) -> str:
    """The unit suffix of a field name, or '' for a plain number: ``hbm_bytes`` -> ``_bytes``, ``bytes_per_s`` -> ``_bytes_per_s``."""
    return next((s for s in UNITS if f"_{field}".endswith(s)), "")


def parse_quantity(text: str, suffix: str) -> float:
    """Read ``"141 GB"`` as SI for a field with this suffix.

    Raises BadInput if the number is malformed, not finite, negative, or the unit does not fit the suffix.
    """
    match = _QUANTITY.fullmatch(text)
    legal = UNITS[suffix]
    if match is None or match.group(2) not in legal:
        some = ", ".join(list(legal)[:8])
        raise BadInput(f"{text[:80]!r} is not a number with a unit of {suffix.lstrip('_')}; legal units: {some}")
    value = float(match.group(1)) * legal[match.group(2)]
    if not math.isfinite(value) or value < 0:
        raise BadInput(f"{text!r} must be finite and not negative")
    return value


def parse_tokens(text: str) -> int:
    """Token counts on the command line: ``K`` = 1024, ``M`` = 1024², plain integers and ``1e6`` as written."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([KkMm]?)\s*", text)
    if match is None:
        raise BadInput(f"{text!r} is not a token count; write 131072, 128K, 1M or 1e6")
    value = float(match.group(1)) * {"": 1, "k": 1024, "m": 1024**2}[match.group(2).lower()]
    if not 1 <= value <= 1e12 or value != int(value):
        raise BadInput(f"{text!r} is not a whole number of tokens between 1 and 1e12")
    return int(value)


def show_number(value: float, digits: int = 3) -> str:
    """A number for people with so many significant digits: ``2,070``, ``12.6``, ``0.000216``; an exponent only beyond 1e-6 and 1e15."""
    if not 1e-6 <= abs(value) < 1e15:
        return f"{value:.{digits}g}"
    rounded = float(f"{value:.{digits}g}")
    places = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    text = f"{rounded:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def show_bytes(value: float) -> str:
    """Bytes for people, in GiB: ``80.0 GiB``."""
    return f"{value / 2**30:,.1f} GiB"


def show_tokens(value: float) -> str:
    """Tokens for people: ``1,048,576 (1M)`` when binary-round, else with separators."""
    n = int(value)
    for unit, size in (("M", 1024**2), ("K", 1024)):
        if n >= size and n % size == 0:
            return f"{n:,} ({n // size}{unit})"
    return f"{n:,}"
