"""Reads measurement tables (Parquet or CSV of kernel and collective times) as columns of one GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios.errors import BadFile, BadInput

Columns = dict[str, NDArray[Any]]
MAX_TABLE_BYTES = 2**30

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
"""Spellings of number formats in the tables -> ours."""


def pandas() -> Any:
    """The pandas module; BadInput with the cure if the ``calibrate`` extra is not installed."""
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        raise BadInput(
            "reading measurement tables needs pandas and pyarrow; install them with: pip install 'roofplan[calibrate]'"
        ) from None
    return pandas


def read_frame(path: Path, columns: Sequence[str]) -> Any:
    """The whole table as a DataFrame; BadFile if it is missing, unreadable or lacks one of ``columns``."""
    pd = pandas()
    if not path.is_file():
        raise BadFile(f"{path}: no such measurement table; give a .csv or .parquet file")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise BadFile(f"{path}: {path.stat().st_size:,} bytes is over the limit of {MAX_TABLE_BYTES:,} for a measurement table")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pyarrow raises many kinds, all of them meaning the file is bad
        raise BadFile(f"{path}: not a readable {path.suffix.lstrip('.')} table: {str(error).splitlines()[0][:120]}") from None
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise BadFile(
            f"{path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {', '.join(map(str, frame.columns[:12]))}"
        )
    return frame


def digest(path: Path) -> str:
    """First 16 hex digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def columns_of(frame: Any) -> Columns:
    """Columns as arrays: numbers become float64 (int32 products overflow), text stays text."""
    out: Columns = {}
    for name in frame.columns:
        values = frame[name].to_numpy()
        out[str(name)] = values.astype(np.float64) if values.dtype.kind in "iuf" else values.astype(str)
    return out
