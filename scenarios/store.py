"""Writes files whole or not at all, and says in one sentence why one cannot be written."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import BadInput


def write_text(text: str, target: str, flag: str = "") -> None:
    """To standard output for ``-``, else to the file ``target``; BadInput, opening with ``flag``, if it cannot be written."""
    if target == "-":
        sys.stdout.write(text)
        return
    write_files({Path(target): text.encode(errors="backslashreplace")}, flag)


def check_place(target: str | Path | None, flag: str) -> None:
    """BadInput, before the work is done, where a file asked for could not be written; None and ``-`` are always well."""
    if target is None or str(target) == "-":
        return
    place = Path(target)
    if not str(target) or "\0" in str(target):
        raise BadInput(f"{flag} {str(target)!r} is no file name; name a file in a folder that exists")
    reason = ""
    try:
        if place.is_dir():
            reason = "it is a folder"
        elif not place.parent.is_dir():
            reason = f"there is no folder {place.parent}"
        elif not os.access(place if place.exists() and not place.is_file() else place.resolve().parent, os.W_OK):
            reason = "permission denied"
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise BadInput(f"{flag} {place}: cannot be written: {reason}; name a file in a folder that exists")


def check_folder(folder: Path, flag: str) -> None:
    """BadInput, before the work is done, where a folder for results could not be made or written."""
    there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    reason = f"{there} is a file" if not there.is_dir() else "" if os.access(there, os.W_OK) else "permission denied"
    if reason:
        raise BadInput(f"{flag} {folder}: cannot be made: {reason}; name a folder that can be written")


def make_folder(folder: Path, flag: str) -> None:
    """The folder, made if it is not there; BadInput if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{flag} {folder}: cannot be made: {reason}; name a folder that can be written") from None


def write_files(files: Mapping[Path, bytes], flag: str = "") -> None:
    """Every file is written beside its place, then all are moved there: an interrupted write leaves what was there before.

    A device or pipe is written as it is, a link's target is replaced and not the link, and a file keeps its mode. Raises BadInput.
    """
    for path in files:
        check_place(path, flag)
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, content in files.items():
            place = path.resolve()
            if place.exists() and not place.is_file():
                place.write_bytes(content)
                continue
            handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:100]}.")
            staged.append((Path(name), place))
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            os.chmod(name, stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o666 & ~_umask())
        for temporary, place in staged:
            os.replace(temporary, place)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{flag} {path}: cannot be written: {reason}; name a file in a folder that exists".lstrip()) from None
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
