"""``roofplan simulate``: plays a training step of a saved plan; anything else goes to the serving simulator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ..scenarios.errors import BadFile, BadInput
from ..scenarios.plan import ParallelPlan
from ..scenarios.scenario import Scenario
from ..scenarios.units import show_number
from ..scenarios.workload import TrainWorkload
from .answer import write_json
from .cli_report import read_answer
from .scenario_io import Problem, resolve

MAX_OPS = 2_000_000
OPEN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=OPEN, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def simulate(words: tuple[str, ...]) -> Any:
    """A JSON file that ``plan --json`` wrote is a training plan; any other arguments are the serving simulator's."""
    if words and words[0].endswith(".json"):
        return replay.main(args=list(words), prog_name="roofplan simulate", standalone_mode=False)
    from ..sim.serve_cli import simulate as serve

    return serve.main(args=list(words), prog_name="roofplan simulate", standalone_mode=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
@click.option("--rank", default=1, show_default=True, type=int, help="Which of the file's plans.")
@click.option("--perfetto", metavar="FILE", help="Write the timeline for ui.perfetto.dev.")
@click.option("--jitter", default=0.0, show_default=True, type=float, help="Relative spread of every op's time, 0 to 1.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the spread.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON; `-` prints it and nothing else.")
def replay(file: str, rank: int, perfetto: str | None, jitter: float, seed: int, json_to: str | None) -> None:
    """Play one step of the training plan saved in FILE by `plan --json FILE`."""
    from ..sim.trace import write_training_trace
    from ..sim.training import replay_step

    if not 0 <= jitter <= 1:
        raise BadInput(f"--jitter {jitter} must be between 0 and 1")
    problem, plan, work = saved_plan(Path(file), rank)
    n_ops = plan.grad_accum * plan.vpp * plan.pp
    if n_ops > MAX_OPS:
        raise BadInput(f"grad_accum={plan.grad_accum:,} on {plan.pp} stages are {n_ops:,} ops, over the limit of {MAX_OPS:,}; replay fewer")
    cost = problem.step(plan, work)
    played = replay_step(cost, plan, jitter_frac=jitter, seed=seed)
    if perfetto:
        write_training_trace(played.pipeline, Path(perfetto))
    expected = float(cost.step_time_s)
    data = {
        "step_time_s": played.step_time_s, "closed_form_s": expected, "closed_form_error_frac": expected / played.step_time_s - 1,
        "bubble_s": played.pipeline.bubble_s, "bubble_frac": played.pipeline.bubble_frac,
        "peak_in_flight": float(played.pipeline.peak_in_flight.max()), "seed": seed,
    }  # fmt: skip
    if json_to:
        write_json(data, json_to)
    if json_to != "-":
        times, error = [show_number(value, 4) for value in (played.step_time_s, expected)], data["closed_form_error_frac"]
        print(f"step {times[0]} s played, {times[1]} s in closed form ({error:+.2%})")
        print(f"bubble {played.pipeline.bubble_frac:.1%} of the ranks' time; at most {data['peak_in_flight']:,g} micro-batches in flight")
        if perfetto:
            print(f"Wrote {perfetto}")


def saved_plan(path: Path, rank: int) -> tuple[Problem, ParallelPlan, TrainWorkload]:
    """The problem and the plan of this rank in a file of ``plan --json``; BadFile if it holds no such thing."""
    data = read_answer(path)
    if isinstance(asked := data.get("scenario"), dict) and asked.get("task") == "serve":
        raise BadInput(
            f"{path} is a serving plan, which was already played; play it again with roofplan simulate --model … and the layout's flags"
        )
    try:
        plans = data["plans"]
        if not 1 <= rank <= len(plans):
            raise BadInput(f"--rank {rank} is not in {path}, which holds {len(plans)} plans")
        asked, chosen = dict(data["scenario"]), plans[rank - 1]
        fields = {f.name for f in dataclasses.fields(ParallelPlan)} - {"techniques"}
        plan = ParallelPlan(**{name: value for name, value in chosen["layout"].items() if name in fields})
        work = TrainWorkload(seq_tokens=int(chosen["seq_tokens"]), global_batch=int(chosen["global_batch"]))
        known = {f.name for f in dataclasses.fields(Scenario)}
        given = {k: v for k, v in asked.items() if k in known} | {"allow": tuple(asked.get("allow", ()))}
        scenario = Scenario(**given | {"n_gpus": int(chosen["n_gpus"]), "objective": "time", "seq_tokens": int(work.seq_tokens)})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadFile(f"{path}: not an answer of plan --json: {type(error).__name__} {error}") from None
    return resolve(scenario), plan, work
