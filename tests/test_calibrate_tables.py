"""Reading measurement tables: numbers become float64, text stays text, bad files are one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from roofplan.calibrate.tables import columns_of, digest, read_frame
from roofplan.scenarios.errors import BadFile


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("gpu,m,latency_us\nh100,3,1.5\nh100,4,2\n")
    columns = columns_of(read_frame(path, ("gpu", "m")))
    assert columns["m"].dtype == np.float64
    assert columns["gpu"].tolist() == ["h100", "h100"]


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(BadFile, match="no such measurement table"):
        read_frame(path, ())
    path.write_text("a,b\n1,2\n")
    with pytest.raises(BadFile, match="lacks the columns m, n; it has a, b"):
        read_frame(path, ("m", "n"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(BadFile, match="not a readable parquet table"):
        read_frame(tmp_path / "t.parquet", ("m",))


def test_digest(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"abc")
    assert digest(path) == "ba7816bf8f01cfea"
