"""Writes a plan's folder whole or not at all, and never over files it did not write."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ...scenarios.errors import BadInput

MARK = ".roofplan.json"
"""Names the files of a folder that were emitted: only those are replaced or removed by a later plan."""


def write_folder(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write ``files`` as ``folder``; the paths written, sorted.

    An earlier plan's folder is replaced, files added to it since are kept. BadInput, and nothing changed, if ``folder`` is a file or holds
    anything that was not emitted, if a kept file stands in the way, or if it cannot be written.
    """
    try:
        earlier = _emitted_before(folder)
        kept = _others(folder, earlier)
        clash = sorted(kept & set(files))
        if clash:
            raise BadInput(f"{folder}: {', '.join(clash)} is not an emitted file and would be overwritten; move it or choose another --out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _fill(staged, files)
            for name in kept:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / name, staged / name)
            _swap(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror or error}; choose another --out") from None
    return sorted(folder / name for name in files)


def _emitted_before(folder: Path) -> set[str]:
    """Names an earlier plan wrote here; empty for a new or empty folder; BadInput for anything else."""
    if folder.is_file():
        raise BadInput(f"{folder} is a file; name a folder that is new, empty or an earlier plan's")
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    try:
        names = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        return {*map(str, names), MARK}
    except (OSError, ValueError, KeyError, TypeError):
        n = sum(1 for _ in folder.iterdir())
        what = f"{folder} is not empty ({n} entries) and not an earlier plan's"
        raise BadInput(f"{what}; name a folder that is new, empty or an earlier plan's") from None


def _others(folder: Path, emitted: set[str]) -> set[str]:
    if not folder.exists():
        return set()
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - emitted


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in {**files, MARK: json.dumps({"files": sorted(files)}) + "\n"}.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(f"file name {name!r} leaves the folder")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
        target.chmod(0o755 if name.endswith(".sh") else 0o644)
    folder.chmod(0o755)


def _swap(staged: Path, folder: Path) -> None:
    """Put ``staged`` in the place of ``folder``; the old one comes back if that fails."""
    old = staged.with_name(staged.name + "-old")
    had = folder.exists()
    if had:
        folder.rename(old)
    try:
        staged.rename(folder)
    except OSError:
        if had:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
