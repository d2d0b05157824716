"""Files appear whole or not at all, and what cannot be written is said in one sentence before the work is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from roofplan.scenarios import store
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.store import check_folder, check_place, make_folder, write_files, write_text


def test_standard_output_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text("all\n", "-")
    write_text("all\n", str(tmp_path / "a"))
    assert capsys.readouterr().out == (tmp_path / "a").read_text() == "all\n"


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(BadInput, match=r"there is no folder .*missing; name a file in a folder that exists"):
        write_files({path: b"new", tmp_path / "missing" / "b": b"new"}, "--out")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(BadInput, match=r"^--out .*a: cannot be written: No space left on device"):
        write_files({path: b"new"}, "--out")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text("half", str(tmp_path / "a"), "--json")
    assert not list(tmp_path.iterdir())


def test_a_device_stays_a_device_and_a_link_a_link(tmp_path: Path) -> None:
    write_text("gone", os.devnull, "--json")
    assert not Path(os.devnull).is_file()
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text("new", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["", "a\0b", ".", "no/such/folder/x.json", "file/x.json", "loop", "x" * 5000])
def test_places_that_cannot_be_written_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    with pytest.raises(BadInput, match=r"^--json .*name a file in a folder that exists"):
        check_place(name, "--json")
    for fine in (None, "-", "new.json", "file"):
        check_place(fine, "--json")


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for check in (check_folder, make_folder):
        with pytest.raises(BadInput, match=r"cannot be made: .*; name a folder that can be written"):
            check(tmp_path / "file" / "folder", "--out")
    check_folder(tmp_path / "new" / "folder", "--out")
    assert not (tmp_path / "new").exists()
    make_folder(tmp_path / "new" / "folder", "--out")
    assert (tmp_path / "new" / "folder").is_dir()
