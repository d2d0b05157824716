"""Tables of a pipelined replica: stages sum to the whole, layers are dealt out, and a micro-batch is that of one replica cut in pieces."""

from __future__ import annotations

import dataclasses

import pytest
from roofplan.costmodels.pipeline_times import pipeline_times, stage_layers
from roofplan.costmodels.serving import Reach, step_times
from roofplan.costmodels.serving_ops import serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, serving_engine

REACH = Reach(tokens=2048, chunk=2048, seqs=64)


@pytest.mark.parametrize(("n", "stages", "layers"), [(32, 4, (8, 8, 8, 8)), (80, 3, (27, 27, 26)), (62, 4, (15, 16, 16, 15))])
def test_layers_left_over_go_before_the_last_stage(n, stages, layers):
    assert stage_layers(n, stages) == layers
    assert sum(stage_layers(n, stages)) == n


def tables(pp: int):
    model, plan = registry.model("llama3.1-8b"), EnginePlan(pp=pp)
    system = serve_system(registry.cluster("l40s", 8), serving_engine("vllm"))
    return model, plan, system, pipeline_times(model, plan, system, REACH)


def test_the_whole_is_the_step_of_one_replica():
    """A micro-batch on its own costs what the same step costs without a pipeline, but for hops and the copies of KV."""
    model, plan, system, times = tables(4)
    one = step_times(model, dataclasses.replace(plan, pp=1), system, REACH)
    for n, kv, chunks in ((1, 500, []), (64, 30_000, []), (20, 9_000, [(700, 0)]), (0, 0, [(2048, 4096)])):
        assert abs(times.whole.step_ps(n, kv, chunks) - one.step_ps(n, kv, chunks)) <= 3  # rounded part by part
        work = times.work.step_ps(n, kv, chunks)
        assert sum(times.stages_ps(work, n)) + times.host[n] == times.whole.step_ps(n, kv, chunks)
    assert one.swap / 4 < times.swap < one.swap / 2  # a quarter of the bytes, and the copy's own latency
    assert all(hop > 0 for hop in times.hop[1:])


def test_a_stage_has_its_layers_and_the_last_the_head():
    _, _, _, times = tables(4)
    work = times.work.step_ps(8, 4000, [(100, 0)])
    stages = times.stages_ps(work, 8)
    for i in range(4):
        assert 0 <= stages[i] - times.stage(i).step_ps(8, 4000, [(100, 0)]) < 4000  # every part is rounded down
    assert stages[0] == stages[1] == stages[2] == work // 4
    assert stages[3] - stages[0] == pytest.approx(times.head[8], abs=4)
