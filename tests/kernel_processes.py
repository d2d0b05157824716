"""Runs a kernel checker in processes of its own (Triton's mode is fixed when a kernel is defined), two at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def rows_by_kernel(
    module: str, before: Sequence[str], names: Sequence[str], folder: Path, env: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The JSON lines that ``python -m module BEFORE… NAMES…`` prints, by kernel; the names are dealt out to two processes."""
    running = []
    for part in (names[::2], names[1::2]):
        command = [sys.executable, "-m", module, *before, *part]
        path = folder / f"{len(running)}.out"
        with path.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=folder, env=os.environ | env)
        running.append((process, path))
    found: dict[str, list[dict[str, Any]]] = {}
    for process, path in running:
        _, errors = process.communicate(timeout=1200)
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["kernel"], []).append(row)
        assert process.returncode in (0, 1), errors[-2000:]
    return found
