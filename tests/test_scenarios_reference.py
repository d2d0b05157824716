"""Cases as data: tables merged, bars applied, faults named, every case readable and referenced."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.scenarios.errors import BadFile, UnknownName
from roofplan.scenarios.load import names
from roofplan.scenarios.reference import Case, cases, merged, read_cases, reference, select

COMMON = """
system = "S"
claim = "c"
metric = "m"
unit = "s"
predictor = "p"
evidence = "V"
reference = "alst"
source = "table 1"
tolerance_frac = 0.1
layout.plan = { tp = 2, recompute = "full" }
"""


def write(tmp_path: Path, rows: str) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(COMMON + rows, encoding="utf-8")
    return path


def test_rows_override_the_common_keys_table_by_table(tmp_path: Path) -> None:
    path = write(tmp_path, '[[row]]\nname = "a"\npublished = 1\n[[row]]\nname = "b"\npublished = 2\nlayout.plan.tp = 8\nevidence = "M"\n')
    a, b = read_cases(path)
    assert (a.layout.plan.tp, b.layout.plan.tp) == (2, 8)
    assert a.layout.plan.recompute == b.layout.plan.recompute == "full"
    assert (a.is_hard, b.is_hard) == (True, False)
    assert a.baseline is None


def test_merged_leaves_its_arguments_alone() -> None:
    common = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged(common, {"a": {"y": 5}, "b": {"z": 1}}) == {"a": {"x": 1, "y": 5}, "b": {"z": 1}}
    assert common == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize(
    ("tolerance_frac", "tolerance_abs", "predicted", "inside"),
    [
        (0.1, 0.0, 11.0, True),
        (0.1, 0.0, 11.01, False),
        (0.0, 0.5, 9.5, True),
        (0.0, 0.5, 9.4, False),
        (0.0, 0.0, 10.0, True),
        (0.0, 0.0, 10.001, False),
    ],
)
def test_bars(tolerance_frac: float, tolerance_abs: float, predicted: float, inside: bool) -> None:
    case = Case(
        name="a", system="s", claim="c", metric="m", unit="", predictor="p", published=10, tolerance_frac=tolerance_frac,
        tolerance_abs=tolerance_abs, evidence="V", reference="alst", source="t",
    )  # fmt: skip
    assert case.passes(predicted) is inside


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "needs at least one [[row]]"),
        ("[[row]]\npublished = 1\n", "a [[row]] without a name"),
        ('[[row]]\nname = "a"\n', "a: missing published"),
        ('[[row]]\nname = "a"\npublished = 1\npredicter = "x"\n', "unknown key 'predicter'; did you mean predictor"),
        ('[[row]]\nname = "a"\npublished = 1\nlayout.plan.cp_kind = "loop"\n', "'loop' is not one of none, ring"),
        ('[[row]]\nname = "a"\npublished = 1\nevidence = "X"\n', "'X' is not one of V, F"),
    ],
)
def test_faults_name_the_row(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(BadFile) as error:
        list(read_cases(write(tmp_path, rows)))
    assert said in str(error.value)


def test_every_case_reads_and_names_a_reference() -> None:
    found = cases()
    assert len(found) > 150
    for case in found.values():
        assert reference(case.reference).source
        assert case.claim
        assert case.published >= 0


def test_every_reference_reads() -> None:
    for name in names("references"):
        assert 1990 < reference(name).year < 2100
    with pytest.raises(UnknownName, match="unknown reference 'alts'; nearest: alst"):
        reference("alts")


def test_select_by_name_prefix_and_system() -> None:
    assert [c.name for c in select(("bigmac-volume",))] == ["bigmac-volume", "bigmac-volume-narrow"]
    assert {c.system for c in select(("mezo", "LightSeq"))} == {"MeZO", "LightSeq"}
    assert len(select(())) == len(cases())
    with pytest.raises(UnknownName, match="unknown case 'alst-h100-9'"):
        select(("alst-h100-9",))
