"""Every row of the technique registry loads, says what it loses and how it is switched on; consents admit what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.scenarios.errors import BadFile, BadInput, UnknownName
from roofplan.scenarios.load import load
from roofplan.scenarios.technique import LEVELS, Technique, allowed, refusal, technique, techniques

ALL = techniques()


def row(**changes: object) -> Technique:
    given: dict[str, object] = {
        "name": "x", "title": "X", "family": "quantise", "levels": ("L0",), "retention": "exact", "source": "a paper", "evidence": "V",
        "nearest": "something",
    }  # fmt: skip
    return Technique(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_row_says_what_it_is(name: str) -> None:
    found = ALL[name]
    assert found.name == name
    assert found.title
    assert found.source
    assert set(found.levels) <= set(LEVELS)
    if set(found.levels) <= {"L0"}:
        assert found.retention == "exact"
    if "L3" in found.levels or "L2" in found.levels:
        assert found.retention not in ("", "exact"), "a lossy row shows its published retention"
    assert (found.status == "deployable") == bool(found.deploy)


def test_a_switch_is_never_empty() -> None:
    assert all(switch.strip() for found in ALL.values() for switch in found.deploy.values())


def test_the_registry_carries_the_catalogue() -> None:
    assert len(ALL) >= 100
    for name in ("headinfer", "minference", "h2o", "shadowkv", "ape", "triforce", "bigmac", "kimi-linear", "ulysses", "lightseq"):
        assert name in ALL


def test_a_row_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(BadInput, match="technique x has no level; legal: L0, L1, L2, L3, LT"):
        row(levels=())
    with pytest.raises(BadInput, match="deploy target 'vlm' is not known; legal: vllm"):
        row(deploy={"vlm": "--x"})
    with pytest.raises(BadInput, match="has no deploy switch; name the nearest deployable equivalent"):
        row(nearest="")
    with pytest.raises(BadInput, match=r"loss_points=1.0 belongs to a lossy level"):
        row(loss_points=1.0)


def test_a_misspelt_key_or_name_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('title = "X"\nfamly = "quantise"\n')
    with pytest.raises(BadFile, match="unknown key 'famly'; did you mean family"):
        load(Technique, file)
    with pytest.raises(UnknownName, match="unknown technique 'headinferr'; nearest: headinfer"):
        technique("headinferr")


def test_lossless_needs_no_consent() -> None:
    free = allowed(ALL.values(), ())
    assert {level for found in free for level in found.levels} == {"L0", "L1"}
    assert {f.name for f in free} == {n for n, f in ALL.items() if set(f.levels) <= {"L0", "L1"}}


def test_each_word_admits_its_level() -> None:
    assert refusal(technique("kv-fp8"), ()) == "kv-fp8 changes the numerics; add --allow quant"
    assert refusal(technique("kv-fp8"), ("quant",)) == ""
    assert refusal(technique("kimi-linear"), ("quant",)).startswith("kimi-linear needs a trained checkpoint; add --allow retrain")
    assert refusal(technique("kimi-linear"), ("retrain",)) == ""


def test_lossy_is_measured_in_points() -> None:
    assert "add --allow lossy:<points>" in refusal(technique("h2o"), ("quant",))
    assert "h2o loses 1.2 points" in refusal(technique("h2o"), ("lossy:1",))
    assert refusal(technique("h2o"), ("lossy:1", "lossy:1.2")) == ""
    assert "no lossy:<points> admits it" in refusal(technique("cake"), ("lossy:100",))


def test_a_technique_of_two_levels_needs_both() -> None:
    assert "--allow quant" in refusal(technique("lserve"), ("lossy:5",))
    assert "lossy" in refusal(technique("lserve"), ("quant",))
    assert refusal(technique("lserve"), ("quant", "lossy:5")) == ""


def test_soft_rows_are_those_not_read_in_a_primary_source() -> None:
    assert technique("cake").is_soft
    assert not technique("headinfer").is_soft
