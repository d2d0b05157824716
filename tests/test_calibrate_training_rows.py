"""Reading a table of training runs: every cell typed, every fault named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.calibrate.training_rows import KINDS, read_runs
from roofplan.scenarios.errors import BadFile, BadInput

SMALL = Path(__file__).parent / "data" / "training" / "small.csv"
HEADER = ",".join(KINDS)


def line(**cells: str) -> str:
    values = {"id": "T1", "source": "s", "model": "m"} | cells
    return ",".join(values.get(name, "") for name in KINDS)


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n", encoding="utf-8")
    return path


def test_reads_numbers_text_and_gaps() -> None:
    runs = {run.id: run for run in read_runs(SMALL)}
    assert len(runs) == len(SMALL.read_text(encoding="utf-8").splitlines()) - 1
    korthikanti = runs["T00606"]
    assert (korthikanti.layers, korthikanti.hidden, korthikanti.step_time_s, korthikanti.micro_batch) == (96, 12288, 18.13, 1)
    assert korthikanti.peak_mem_gb is None
    assert korthikanti.sharding == ""


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    names = [*reversed(KINDS), "mfu", "source_url"]
    cells = {"id": "T1", "source": "s", "model": "m", "layers": "32.0", "mfu": "not a number, and nobody asks"}
    path = tmp_path / "runs.csv"
    path.write_text(",".join(names) + "\n" + ",".join(f'"{cells.get(n, "")}"' for n in names) + "\n", encoding="utf-8")
    assert read_runs(path)[0].layers == 32


@pytest.mark.parametrize(
    ("cell", "value", "said"),
    [
        ("step_time_s", "nan", "is not finite"),
        ("step_time_s", "inf", "is not finite"),
        ("step_time_s", "fast", "is not a number"),
        ("step_time_s", "-1", "must be between 0 and 1e+15"),
        ("layers", "1e300", "must be between 0 and 1e+15"),
        ("layers", "3.5", "must be a whole number"),
        ("id", "", "id is empty"),
        ("source", "", "source is empty"),
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, cell: str, value: str, said: str) -> None:
    path = table(tmp_path, line(), line(**({"id": "T2"} | {cell: value})))
    with pytest.raises(BadFile, match=r"line 3: ") as error:
        read_runs(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_faults_of_the_whole_file(tmp_path: Path) -> None:
    cases = {
        "missing.csv": (None, "cannot be read"),
        "empty.csv": (b"", "empty; the first line must name the columns"),
        "blank.csv": (b"\n\n", "empty; the first line"),
        "header.csv": (HEADER.encode(), "a header but no rows"),
        "columns.csv": (b"id,source\nT1,s\n", "line 1: missing columns model, layers"),
        "twice.csv": (f"{HEADER},id\n".encode(), "column 'id' is given twice"),
        "short.csv": (f"{HEADER}\n{line()[:-5]}\n".encode(), "line 2: 34 cells under 39 columns; the line is cut short"),
        "long.csv": (f"{HEADER}\n{line()},more\n".encode(), "a cell with a comma needs quotes"),
        "again.csv": (f"{HEADER}\n{line()}\n{line()}\n".encode(), "line 3: id 'T1' was already used in line 2"),
        "quote.csv": (f'{HEADER}\n"T1'.encode(), "line 2: not a CSV line"),
        "latin.csv": (HEADER.encode() + b"\n\xff\xfe", "not UTF-8"),
        "nul.csv": (HEADER.encode() + b"\nT1\0,s", "line 2: holds a NUL byte"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadFile) as error:
            read_runs(path)
        assert said in str(error.value), name


def test_a_folder_is_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="regular file"):
        read_runs(tmp_path)


@given(st.binary(max_size=400))
def test_any_bytes_give_rows_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        read_runs(path)


@given(st.lists(st.text(max_size=12), min_size=len(KINDS), max_size=len(KINDS)))
def test_any_cells_give_rows_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.csv"
    path.write_text(HEADER + "\n" + ",".join('"' + c.replace('"', '""') + '"' for c in cells) + "\n", encoding="utf-8", newline="")
    try:
        assert len(read_runs(path)) == 1
    except BadInput as error:
        assert "\n" not in str(error)
