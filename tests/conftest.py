"""Settings shared by all tests: hypothesis draws the same examples every time; full data tables are used only where given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("roofplan", derandomize=True, deadline=None, database=None)
settings.load_profile("roofplan")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of the full measurement tables; skips the test when ROOFPLAN_DATA does not name one."""
    given = os.environ.get("ROOFPLAN_DATA", "")
    if not given or not Path(given).is_dir():
        pytest.skip("the full measurement tables are not here; set ROOFPLAN_DATA to their directory to run this check")
    return Path(given)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """``golden(name, text)``: text equals ``tests/golden/<name>`` to the byte; ``make golden`` writes the file instead."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if os.environ.get("ROOFPLAN_GOLDEN") == "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"tests/golden/{name} is missing; run `make golden` and read what it wrote"
        assert path.read_text(encoding="utf-8") == text, f"tests/golden/{name} differs; if meant, run `make golden` and read the diff"

    return check
