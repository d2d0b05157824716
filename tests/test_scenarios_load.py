"""The TOML loader: units, types, unknown and missing keys, and files that are not what they should be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.scenarios.errors import BadFile, BadInput, UnknownName
from roofplan.scenarios.hardware import Accelerator
from roofplan.scenarios.load import MAX_FILE_BYTES, build, by_name, load, names, read_text, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    delay_s: float
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    name: str
    hbm_bytes: float
    hbm_bytes_per_s: float = 0.0
    n_parts: int = 1
    big: bool = False
    share_frac: float = 1.0
    limit: float | None = None
    either: int | str = 0
    parts: tuple[str, ...] = ()
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_parts > 100:
            raise BadInput(f"n_parts={self.n_parts} must be at most 100")


def test_builds_what_the_data_says() -> None:
    data = {
        "name": "x",
        "hbm": "141 GB",
        "hbm_bytes_per_s": "4.8 TB/s",
        "n_parts": 3,
        "big": True,
        "share": "92 %",
        "limit": 4,
        "either": "many",
        "parts": ["p", "q"],
        "inner": {"delay": "3 us", "kind": "b"},
        "inners": [{"delay_s": 1}],
        "sources": {"default": "datasheet"},
        "free": {"window": 4, "modes": ["a"]},
    }
    thing = build(Thing, data, "here")
    assert (thing.hbm_bytes, thing.hbm_bytes_per_s, thing.n_parts, thing.big) == (141e9, 4.8e12, 3, True)
    assert (thing.share_frac, thing.limit, thing.either, thing.parts) == (0.92, 4.0, "many", ("p", "q"))
    assert thing.inner == Inner(delay_s=pytest.approx(3e-6), kind="b")  # type: ignore[arg-type]
    assert thing.inners == (Inner(delay_s=1.0),)
    assert thing.free == {"window": 4, "modes": ["a"]}


def test_the_first_of_two_fields_has_the_short_key() -> None:
    assert build(Thing, {"name": "x", "hbm": "1 GB"}, "here").hbm_bytes == 1e9
    with pytest.raises(BadFile, match=r"here: hbm: '1 GB/s' is not a number with a unit of bytes"):
        build(Thing, {"name": "x", "hbm": "1 GB/s"}, "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x"}, "here: missing hbm"),
        ({"name": "x", "hbm": 1, "hbm_bytes": 1}, "here: 'hbm_bytes' is given twice"),
        ({"name": "x", "hbm": 1, "n_partz": 1}, "here: unknown key 'n_partz'; did you mean n_parts"),
        ({"name": "x", "hbm": 1, "@": 1}, "here: unknown key '@'; legal: big, either"),
        ({"name": 3, "hbm": 1}, "here: name: 3 is not text"),
        ({"name": "x", "hbm": -1}, "here: hbm: -1 must be finite and not negative"),
        ({"name": "x", "hbm": float("nan")}, "here: hbm: nan must be finite and not negative"),
        ({"name": "x", "hbm": float("inf")}, "here: hbm: inf must be finite and not negative"),
        ({"name": "x", "hbm": 10**400}, "must be finite and not negative"),
        ({"name": "x", "hbm": 10**5000}, "a number of over 4,300 digits must be finite and not negative"),
        ({"name": "x", "hbm": True}, "here: hbm: True is not a number or a quantity with a unit"),
        ({"name": "x", "hbm": "141 Gb/s"}, "here: hbm: '141 Gb/s' is not a number with a unit of bytes"),
        ({"name": "x", "hbm": 1, "n_parts": 1.5}, "here: n_parts: 1.5 must be a whole number"),
        ({"name": "x", "hbm": 1, "n_parts": "3"}, "here: n_parts: '3' is not a whole number"),
        ({"name": "x", "hbm": 1, "n_parts": 101}, "here: n_parts=101 must be at most 100"),
        ({"name": "x", "hbm": 1, "big": 1}, "here: big: 1 is not true or false"),
        ({"name": "x", "hbm": 1, "parts": "p"}, "here: parts: 'p' is not a list"),
        ({"name": "x", "hbm": 1, "parts": [1]}, "here: parts: 1 is not text"),
        ({"name": "x", "hbm": 1, "sources": ["a"]}, r"here: sources: \['a'\] is not a table"),
        ({"name": "x", "hbm": 1, "inner": 1}, "here: inner: 1 is not a table"),
        ({"name": "x", "hbm": 1, "inner": {"delay": 1, "kind": "c"}}, "here: inner: kind: 'c' is not one of a, b"),
        ({"name": "x", "hbm": 1, "inner": {}}, "here: inner: missing delay"),
        ({"name": "x", "hbm": 1, "either": []}, r"here: either: \[\] is not a whole number"),
    ],
)
def test_refuses(data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        build(Thing, data, "here")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["name", "hbm", "hbm_bytes_per_s", "n_parts", "big", "share", "limit", "either", "parts", "inner", "inners"])


@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_any_table_is_a_thing_or_bad_file(data: dict[str, Any]) -> None:
    try:
        thing = build(Thing, {"name": "x", "hbm": "1 GB"} | data, "here")
    except BadFile as error:
        assert str(error).startswith("here: ")
        assert len(str(error)) < 500
    else:
        assert 0 <= thing.hbm_bytes < float("inf")


def test_the_stem_is_the_name(tmp_path: Path) -> None:
    file = tmp_path / "my-thing.toml"
    file.write_text('hbm = "1 GB"\n')
    assert load(Thing, file).name == "my-thing"
    file.write_text('name = "other"\nhbm = "1 GB"\n')
    assert load(Thing, file).name == "other"


@pytest.mark.parametrize(
    "text",
    [
        "hbm = ",
        "a = 1\na = 2",
        "[[[",
        "x = " + "[" * 100_000,
        "x = " + "9" * 5000,
        "\x00",
    ],
)
def test_malformed_toml_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(BadFile, match=r"bad\.toml: not valid TOML: "):
        read_toml(file)


def test_files_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"nothing\.toml'?: cannot be read: No such file or directory"):
        read_text(tmp_path / "nothing.toml")
    with pytest.raises(BadFile, match="not a regular file"):
        read_text(tmp_path)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(BadFile, match=r"latin: not UTF-8 text \(byte 3\)"):
        read_text(tmp_path / "latin")
    (tmp_path / "big").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(BadFile, match="big: 4,194,305 bytes is over the limit of 4,194,304"):
        read_text(tmp_path / "big")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="pipe: not a regular file"):
        read_text(tmp_path / "pipe")
    for odd in ("a\0b", "x" * 5000):
        with pytest.raises(BadFile, match="cannot be read"):
            read_text(Path(odd))


def test_by_name_finds_the_file_or_says_what_is_near() -> None:
    assert by_name(Accelerator, "hardware", "H200", "GPU").name == "h200"
    with pytest.raises(UnknownName, match="unknown GPU 'h201'; nearest: "):
        by_name(Accelerator, "hardware", "h201", "GPU")
    assert names("hardware")["h200"].name == "h200.toml"
