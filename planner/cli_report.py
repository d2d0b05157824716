"""``roofplan report``: shows an answer that ``plan --json`` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..scenarios.errors import BadFile
from ..scenarios.load import read_text

MAX_BYTES = 64 * 2**20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
def report(file: str) -> None:
    """Show the answer saved in FILE by `plan --json FILE`."""
    from ..scenarios.terminal import Terminal
    from . import report as training
    from . import serve_report as serving

    data = read_answer(Path(file))
    try:
        show = serving.print_report if data["scenario"].get("task") == "serve" else training.print_report
        show(data, Terminal())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadFile(f"{file}: not an answer of plan --json: {type(error).__name__} {error}") from None


def read_answer(path: Path) -> dict[str, Any]:
    """The JSON object in a file; BadFile if it is not one."""
    try:
        data = json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadFile(f"{path}: holds a JSON {type(data).__name__}, not the object that plan --json writes")
    return data
