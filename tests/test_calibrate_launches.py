"""Recorded launches of disaggregated runs: how a line reads, which days it covers, and what wrong lines say."""

from __future__ import annotations

import tomllib

import pytest
from roofplan.calibrate.launches import distinct, launch, launches, workers
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadFile
from roofplan.scenarios.load import names

POOLS = "2 x dp4ep4 tokens=16896 seats=2 | 3 x tp8ep8 seats=16 memory=0.9 stream=100"
LINE = f"8192/1024 | 4 12 | {POOLS} | plain rate=300 | 2026-02-03 2026-03-01"


def test_a_line_is_lengths_clients_two_pools_and_days():
    one = launch(LINE)
    assert (one.isl, one.osl, one.clients, one.rate_per_s, one.speculates) == (8192, 1024, (4, 12), 300, False)
    assert (one.prefill.layout, one.prefill.gpus_each, one.prefill.limits) == ((2, 1, 4, 4), 4, {"tokens": 16896, "seats": 2})
    assert (one.decode.layout, one.decode.limits) == ((3, 8, 1, 8), {"seats": 16, "memory": 90, "stream": 100})
    assert one.n_gpus == 2 * 4 + 3 * 8
    assert launch(LINE.replace("plain rate=300", "mtp")).speculates
    assert [launch(LINE.replace("rate=300", load)).rounds for load in ("rate=300", "rounds=5 rate=300", "rounds=5")] == [10, 5, 5]


@pytest.mark.parametrize(("day", "covered"), [("2026-01-17", False), ("2026-01-18", True), ("2026-03-11", True), ("2026-03-12", False)])
def test_a_run_may_come_days_before_the_merge_and_after_the_next(day, covered):
    assert launch(LINE).in_force(day) is covered


def test_workers_have_a_layout_and_limits():
    assert workers("1 x tp4 kv=bf16").kv_dtype == "bf16"
    assert workers("1 x tp2dp4ep8 a2a=1").layout == (1, 2, 4, 8)
    assert workers("1 x tp4").limits == {}


def test_wrong_lines_are_one_sentence():
    with pytest.raises(BadFile, match="give lengths, clients, prefill, decode, kind and days"):
        launch("1024/1024 | 4 | 1 x tp4")
    with pytest.raises(BadFile, match=r"give e\.g\. '4 x tp8ep8"):
        workers("four of tp8")


def test_workers_may_ask_for_kernels():
    one = workers("1 x tp4 tokens=8192 products=trtllm experts=cutlass")
    assert (one.products, one.experts, one.limits) == ("trtllm", "cutlass", {"tokens": 8192})
    assert (workers("1 x tp4").products, workers("1 x tp4").experts) == ("", "")


@pytest.mark.parametrize(("day", "off"), [("2026-02-01", -2), ("2026-02-03", 0), ("2026-02-28", 0), ("2026-03-01", 1), ("2026-03-05", 5)])
def test_a_launch_ends_the_day_its_successor_is_merged(day, off):
    assert launch(LINE).days_off(day) == off


def test_equal_workers_count_once_as_launched_nearest_to_the_day():
    again, other = LINE.replace("4 12", "64"), LINE.replace("3 x tp8ep8", "4 x tp8ep8")
    assert len(list(distinct((launch(line) for line in (LINE, again, other)), "2026-02-10"))) == 2
    later = LINE.replace("rate=300", "rounds=5").replace("2026-02-03 2026-03-01", "2026-03-01 2026-05-01")
    for day, rounds in (("2026-01-30", 10), ("2026-02-28", 10), ("2026-03-01", 5), ("2026-03-08", 5)):
        (one,) = distinct([launch(LINE), launch(later)], day)
        assert one.rounds == rounds


def test_every_recorded_line_reads_and_fits_a_domain():
    """All 418 of them: experts divide over a worker's GPUs, days are in order, no deployment is larger than what InferenceX rents."""
    n = 0
    for path in names("launches").values():
        for suite in tomllib.loads(path.read_text(encoding="utf-8"))["suite"]:
            for one in launches(suite["engine"], suite["model"], suite["gpu"], suite["bits"]):
                assert one.since <= one.until
                assert 2 <= one.n_gpus <= 104
                assert one.prefill.gpus_each % one.prefill.ep == one.decode.gpus_each % one.decode.ep == 0
                n += 1
    assert n == 418
    assert launches("trtllm", "deepseek-r1", "a100-80gb-sxm", 8) == ()


def test_suites_name_models_and_cards_as_the_registry_does():
    """A row's card is looked up by the registry's name: a suite with another would never be found."""
    suites = [suite for path in names("launches").values() for suite in tomllib.loads(path.read_text())["suite"]]
    assert {registry.accelerator(suite["gpu"]).name for suite in suites} == {suite["gpu"] for suite in suites}
