"""Tables on a terminal, a pipe or a file: a cell is wrapped between its words where that helps, and never cut."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Terminal(Console):
    """A console that leaves a closed pipe to whoever runs the program; rich would end it as a failure."""

    def on_broken_pipe(self) -> None:
        """Called by rich within its handler of BrokenPipeError. Raises it again."""
        raise BrokenPipeError


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table; on a narrower terminal than it needs its lines go on past the edge, so that no name or number loses its end.

    A column that may not wrap needs its longest cell, any other its longest word.
    """
    console = console or Terminal()
    for column in table.columns:
        cells = [Text.from_markup(cell) if isinstance(cell, str) else Text(str(cell)) for cell in (column.header, *column.cells)]
        pieces = [text.plain if column.no_wrap else word for text in cells for word in (text.plain.split() or [""])]
        column.min_width = max(map(cell_len, pieces))
    needed = console.measure(table, options=console.options.update(max_width=10_000)).minimum
    console.width = max(console.width, needed)
    console.print(table)
