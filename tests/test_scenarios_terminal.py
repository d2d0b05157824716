"""Tables lose no letter on a narrow terminal, and a closed pipe is the caller's."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from roofplan.scenarios.terminal import Terminal, print_table


def shown(columns: int) -> str:
    table = Table(box=None)
    table.add_column("name of it", no_wrap=True)
    table.add_column("why it is so")
    table.add_column("[bold]n[/]", no_wrap=True, justify="right")
    table.add_row("a-long-name-without-spaces", "several words that may be wrapped", "[red]12,345,678[/]")
    out = io.StringIO()
    print_table(table, Terminal(file=out, width=columns))
    return out.getvalue()


@pytest.mark.parametrize("columns", [10, 40, 60, 80, 200])
def test_nothing_is_cut(columns: int) -> None:
    text = shown(columns)
    assert "…" not in text
    for whole in ("name of it", "a-long-name-without-spaces", "12,345,678", "several", "wrapped"):
        assert whole in text


def test_a_table_takes_no_more_than_it_needs() -> None:
    assert max(map(len, shown(10).splitlines())) < 55  # the name, the number, and "several" in between
    assert max(map(len, shown(60).splitlines())) <= 60


def test_a_closed_pipe_is_the_callers_to_end() -> None:
    with pytest.raises(BrokenPipeError):
        Terminal().on_broken_pipe()
