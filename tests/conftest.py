"""Settings shared by all tests: hypothesis draws the same examples every time; full data tables are used only where given."""

from __future__ import annotations

import os
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
