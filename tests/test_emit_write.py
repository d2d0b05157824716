"""A plan's folder is written whole or not at all, never over what somebody else put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from roofplan.planner.emit.write import MARK, write_folder
from roofplan.scenarios.errors import BadInput

FILES = {"README.md": "one\n", "sub/run.sh": "#!/bin/sh\n"}


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_new_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "plan"
    assert write_folder(FILES, out) == [out / "README.md", out / "sub/run.sh"]
    assert {k: v for k, v in tree(out).items() if k != MARK} == FILES
    assert os.access(out / "sub/run.sh", os.X_OK)
    assert not os.access(out / "README.md", os.X_OK)
    assert [p.name for p in out.parent.iterdir()] == ["plan"]


def test_empty_folder(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path)
    assert (tmp_path / "README.md").exists()


def test_an_earlier_plan_is_replaced_and_what_was_added_stays(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    write_folder({**FILES, "old.txt": "x"}, out)
    (out / "measured.csv").write_text("mine")
    (out / "ckpt").mkdir()
    (out / "ckpt" / "w.bin").write_text("big")
    write_folder({"README.md": "two\n"}, out)
    assert {k: v for k, v in tree(out).items() if k != MARK} == {"README.md": "two\n", "measured.csv": "mine", "ckpt/w.bin": "big"}
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match=r"is not empty \(1 entries\) and not an earlier plan's; name a folder that is new, empty"):
        write_folder(FILES, tmp_path)
    assert tree(tmp_path) == {"thesis.tex": "mine"}


def test_a_file_added_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    write_folder({"README.md": "one\n"}, out)
    (out / "train.py").write_text("mine")
    before = tree(out)
    with pytest.raises(BadInput, match=r"train.py is not an emitted file and would be overwritten; move it"):
        write_folder({**FILES, "train.py": "ours"}, out)
    assert tree(out) == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("x")
    with pytest.raises(BadInput, match="is a file; name a folder"):
        write_folder(FILES, tmp_path / "plan")
    with pytest.raises(BadInput, match=r"cannot be written: .*; choose another --out"):
        write_folder(FILES, tmp_path / "plan" / "below")


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b"])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves the folder"):
        write_folder({"README.md": "x", name: "y"}, tmp_path / "plan")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "plan"
    write_folder(FILES, out)
    before = tree(out)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(BadInput, match="No space left on device"):
            write_folder({"README.md": "two\n"}, out)
    with monkeypatch.context() as patch:
        real = Path.rename
        patch.setattr(
            Path,
            "rename",
            lambda self, to: (
                full() if self.name.startswith(".plan-") and Path(to) == out and not self.name.endswith("-old") else real(self, to)
            ),
        )
        with pytest.raises(BadInput, match="No space left on device"):
            write_folder({"README.md": "two\n"}, out)
    assert tree(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]
