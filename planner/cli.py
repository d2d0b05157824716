"""``plan``: how to run a model on a cluster, as a ranked table, as JSON, and as a folder that runs."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from ..scenarios.errors import BadInput
from ..scenarios.scenario import OBJECTIVES, OPTIMIZERS, PRECISIONS, TASKS, parse_seq, read_scenario
from ..scenarios.store import check_place
from ..scenarios.units import parse_quantity
from .command import FAILED, OK, run
from .decide import Decision, decide
from .engines import ENGINES

SERVE_ONLY = (
    "isl",
    "osl",
    "trace",
    "rate",
    "concurrency",
    "ttft",
    "tpot",
    "engine",
    "speculation",
    "rope_scaling",
    "expert_skew",
    "compare",
)


class Seq(click.ParamType):  # type: ignore[type-arg]
    """A token count or ``max``."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """``1M`` -> 1048576, ``max`` -> 0; BadInput otherwise."""
        return value if isinstance(value, int) else parse_seq(value)


class Share(click.ParamType):  # type: ignore[type-arg]
    """A part of a whole: ``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``5%`` -> 0.05; BadInput otherwise."""
        if isinstance(value, float):
            return value
        return parse_quantity(value, "_frac") if value.endswith("%") else parse_quantity(value + "%", "_frac") * 100


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A quantity of bytes with its unit: ``1.9TB``, ``512 GiB``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``1.9TB`` -> 1.9e12; BadInput otherwise, and for none at all."""
        found = value if isinstance(value, float) else parse_quantity(value, "_bytes")
        if not found:
            raise BadInput(f"{value!r} is no memory at all; give more than 0, or leave it out for the cluster's own")
        return found


class Price(click.ParamType):  # type: ignore[type-arg]
    """US dollars per GPU hour."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``2.5`` -> 2.5; BadInput for anything but a finite number above 0."""
        try:
            found = float(value)
        except ValueError:
            raise BadInput(f"--price {value!r} is not a number of US dollars per GPU hour; write 2.5") from None
        if not 0 < found < math.inf:
            raise BadInput(f"--price {value} must be finite and above 0; leave it out for the cluster's own")
        return found


def scenario_flags(command: Any) -> Any:
    """The flags that describe a training scenario; shared by ``plan`` and ``sweep``."""
    flags = [
        click.option("--model", help="Model: alias, Hugging Face id known to the registry, or path of a config.json."),
        click.option("--gpu", help="GPU; see `roofplan gpus`.  [default: h100-sxm]"),
        click.option("--cluster", help="Cluster by name, instead of the GPU's default one."),
        click.option("--gpus-per-node", type=int, help="GPUs of a node, if not the cluster's own."),
        click.option(
            "--objective",
            type=click.Choice([*OBJECTIVES, "latency"]),
            help="What to minimise or stretch.  [default: time; serving: throughput, or cost without --gpus]",
        ),
        click.option("--allow", multiple=True, help="Accept less than lossless: quant, lossy:<points>, retrain. Repeatable."),
        click.option("--global-batch", type=int, help="Sequences of a step.  [default: about 4 Mi tokens, 1,024 a GPU if that is more]"),
        click.option("--micro-batch", type=int, help="Sequences of a micro-batch.  [default: searched]"),
        click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic of the matmuls.  [default: bf16]"),
        click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Optimizer.  [default: adamw]"),
        click.option("--framework", type=click.Choice([*ENGINES, "auto"]), help="Only layouts this framework can run.  [default: auto]"),
        click.option("--host-ram", "host_ram_bytes", type=Bytes(), help="Memory of one host, e.g. 1.9TB, if not the cluster's own."),
        click.option("--memory-margin", "memory_margin_frac", type=Share(), help="Device memory to leave free.  [default: 5%]"),
        click.option("--price", "price_usd_per_h", type=Price(), help="USD per GPU hour, if not the cluster's own."),
        click.option("--calibration", help="Calibration file (TOML) instead of the GPU's own."),
        click.option("--index-bits", type=int, help="Width of the kernels' tensor index (31: int32), as a limit.  [default: none]"),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scenario", "scenario_file", help="TOML file with any of these settings; flags override it.")
@scenario_flags
@click.option("--seq", "seq_tokens", type=Seq(), help="Tokens of a sequence: 131072, 128K, 1M; or max.  [default: 8192]")
@click.option("--gpus", "n_gpus", type=int, help="Number of GPUs.  [serving default: the fewest that carry --rate]")
@click.option("--task", type=click.Choice(TASKS), help="What to plan.  [default: train]")
@click.option("--top", type=int, help="How many plans to show.  [default: 5]")
@click.option("--out", help="Folder for the files that run the winner; written whole or not at all.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the answer as JSON; `-` prints it and nothing else.")
@click.option("--isl", help="Serving: prompt tokens, like 4000 or 128K.")
@click.option("--osl", help="Serving: output tokens.")
@click.option("--rate", help="Serving: requests a second that must be carried.")
@click.option("--ttft", help="Serving: promised time to first token of 95 % of requests, like 2s.")
@click.option("--tpot", help="Serving: promised time per output token of 95 % of requests, like 30ms.")
@click.option("--trace", help="Serving: a request trace to replay (Azure, Mooncake, BurstGPT, Vidur, vLLM, guidellm); --rate re-times it.")
@click.option("--concurrency", help="Serving: clients that each wait for their answer, instead of --rate.")
@click.option("--engine", help="Serving: engine profile: vllm, sglang, trtllm.  [default: vllm]")
@click.option("--speculation", help="Serving: METHOD:GUESSES:ACCEPTANCE, like mtp:1:0.85, tried beside plain decoding.")
@click.option("--expert-skew", type=float, help="Serving: Zipf exponent of how often experts are chosen.  [default: 0, even]")
@click.option("--compare", help="Serving: hold the winner against what is not searched: semi-pd, afd, router, autoscale.")
@click.option("--rope-scaling", help="Serving: stretch the model's positions for a longer context, like yarn:4.")
def plan(scenario_file: str | None, json_to: str | None, out: str | None, **flags: Any) -> int:
    """Rank the ways to train or serve a model on a cluster, say why the best one wins, and write the files that run it."""
    flags["allow"] = split_allow(flags["allow"])
    check_place(json_to, "--json")
    if flags["task"] == "serve":
        from .cli_serve import plan_serve

        return plan_serve(flags | {"scenario": scenario_file, "out": out}, json_to)
    serving = [name for name in SERVE_ONLY if flags.pop(name) is not None]
    scenario = read_scenario(Path(scenario_file) if scenario_file else None, flags)
    if serving and scenario.task == "train":
        raise BadInput(f"--{serving[0].replace('_', '-')} belongs to --task serve; add that, or drop it to plan training")
    decision = decide(scenario, progress=progress(quiet=json_to == "-"))
    answer = as_answer(decision)
    written = write_out(decision, answer, out) if out and decision.choices else 0
    show(answer, json_to)
    if written and json_to != "-":
        print(f"Wrote {written} files to {out}.")
    return OK if decision.choices else FAILED


def split_allow(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """``("quant,retrain",)`` -> ``("quant", "retrain")``; None when the flag was not given."""
    return tuple(w.strip() for word in words for w in word.split(",")) or None


def progress(*, quiet: bool) -> Any:
    """A function that shows one line of progress on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)


def as_answer(decision: Decision) -> dict[str, Any]:
    """The decision in its stable form; ends the line of progress."""
    from .answer import as_json

    data = as_json(decision)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return data


def write_out(decision: Decision, answer: dict[str, Any], folder: str) -> int:
    """Write the folder that runs the winner; the number of files."""
    from .export import export

    return len(export(decision, Path(folder), answer))


def show(answer: dict[str, Any], json_to: str | None) -> None:
    """The table on standard output, and the JSON where it was asked for; ``-`` replaces the table."""
    if json_to:
        from .answer import write_json

        write_json(answer, json_to)
    if json_to == "-":
        return
    from ..scenarios.terminal import Terminal
    from .report import print_report

    print_report(answer, Terminal(soft_wrap=False))


def plan_main() -> NoReturn:
    """The console script ``plan``."""
    run(plan, "plan")
