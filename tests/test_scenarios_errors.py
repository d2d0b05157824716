"""The exception tree and the sentence of an unknown name."""

from __future__ import annotations

import pytest
from roofplan.scenarios.errors import BadFile, BadInput, CheckFailed, RoofplanError, UnknownName


def test_tree() -> None:
    assert issubclass(UnknownName, BadInput)
    assert issubclass(BadFile, BadInput)
    assert issubclass(BadInput, RoofplanError)
    assert issubclass(CheckFailed, RoofplanError)
    assert not issubclass(CheckFailed, BadInput), "exit codes 1 and 2 must stay apart"


def test_unknown_name_lists_the_nearest() -> None:
    error = UnknownName("model", "lama3-8b", ["llama3-8b", "llama3-70b", "gpt3-175b"])
    assert str(error) == "unknown model 'lama3-8b'; nearest: llama3-8b, llama3-70b (3 known)"


def test_unknown_name_with_nothing_near_lists_the_first_ones() -> None:
    assert str(UnknownName("GPU", "zzz", ["b200", "a10g"])) == "unknown GPU 'zzz'; nearest: a10g, b200 (2 known)"


@pytest.mark.parametrize("name", ["x" * 10**6, "", "\0", "línea\n"])
def test_unknown_name_stays_one_short_line(name: str) -> None:
    message = str(UnknownName("model", name, ["llama3-8b"]))
    assert len(message) < 300
    assert "\n" not in message
