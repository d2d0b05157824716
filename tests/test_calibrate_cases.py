"""Every catalogue case has its predictor; a hard number is inside its bar, or the case says why it is not."""

from __future__ import annotations

import dataclasses

import pytest
from roofplan.calibrate.cases import PREDICTORS, predict
from roofplan.calibrate.validate import case_row, run_cases
from roofplan.scenarios.errors import BadInput, UnknownName
from roofplan.scenarios.reference import Case, cases, select

ALL = list(cases().values())


def first(name: str) -> Case:
    return select((name,))[0]


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.name)
def test_hard_numbers_are_met_or_the_miss_is_explained(case: Case) -> None:
    row = case_row(case)
    assert row["status"] in ("pass", "claimed") or case.note, f"{case.name}: predicted {row['predicted']:.4g} for {case.published:.4g}"


def test_predictors_are_used_and_documented() -> None:
    assert {c.predictor for c in ALL} <= set(PREDICTORS)
    for name, predictor in PREDICTORS.items():
        assert predictor.__doc__, name


def test_a_prediction_does_not_read_the_published_number() -> None:
    for case in (first("alst-h100-8"), first("lightseq-mega-7b-64k-8"), first("bigmac-volume"), first("dsv3-step"), first("mezo-ft-1")):
        assert predict(case) == predict(dataclasses.replace(case, published=7.0 * case.published, tolerance_frac=9.0))


def test_status_follows_evidence_and_bar() -> None:
    case = first("bigmac-volume")
    assert case_row(case)["status"] == "pass"
    assert case_row(dataclasses.replace(case, published=2000.0))["status"] == "miss"
    assert case_row(dataclasses.replace(case, published=2000.0, evidence="M"))["status"] == "claimed"


def test_rows_hold_the_contract() -> None:
    result = run_cases(select(("bigmac-volume", "deepseekmoe")))
    keys = {"case", "system", "claim", "class", "metric", "published", "predicted", "error_frac", "tolerance_frac", "status", "note"}
    for row in result["rows"]:
        assert keys <= set(row)
        assert row["error_frac"] == pytest.approx(row["predicted"] / row["published"] - 1)
    s = result["summary"]
    assert s["n"] == len(result["rows"]) == s["pass"] + s["miss"] + s["claimed"]
    assert set(s["systems"]) == {"BigMac", "DeepSeekMoE"}


def test_what_a_case_lacks_is_said() -> None:
    case = first("bigmac-volume")
    with pytest.raises(UnknownName, match="unknown predictor 'all_to_all_gb'; nearest: all_to_all_gib"):
        predict(dataclasses.replace(case, predictor="all_to_all_gb"))
    with pytest.raises(BadInput, match=r"case bigmac-volume: predictor narrow_train_tflop needs 'dim_scale' in \[numbers\] or \[words\]"):
        predict(dataclasses.replace(case, predictor="narrow_train_tflop"))
    with pytest.raises(BadInput, match=r"predictor speedup needs a \[baseline\]"):
        predict(dataclasses.replace(case, predictor="speedup"))
