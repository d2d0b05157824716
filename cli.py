"""``roofplan``: one program with the sub-commands of every folder, each loaded only when it is asked for."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from . import __version__
from .planner.command import run
from .scenarios.errors import BadInput

COMMANDS = {
    "plan": ("planner.cli", "plan", "Rank the ways to run a model on a cluster and write the files that run the best."),
    "simulate": (
        "planner.cli_simulate",
        "simulate",
        "Play requests on a serving system, or a step of a saved training plan.",
    ),
    "calibrate": ("calibrate.cli", "calibrate", "Measure a GPU, import measurements, fit the cost model, check it."),
    "validate": ("calibrate.validate_cli", "validate", "Compare predictions with published and measured runs."),
    "sweep": ("planner.cli_sweep", "sweep", "Plan a grid of sequence lengths, GPU counts and GPUs."),
    "report": ("planner.cli_report", "report", "Show an answer saved by plan --json."),
    "models": ("planner.cli_names", "models", "List the models."),
    "gpus": ("planner.cli_names", "gpus", "List the GPUs."),
    "techniques": ("planner.cli_names", "techniques", "List the published techniques, what each loses and what switches it on."),
}
"""Sub-command -> (module, attribute, one line of help)."""


class Lazy(click.Group):
    """A group that imports a sub-command's module when the sub-command runs; listing them imports nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name; BadInput if it needs a package that is not installed."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        except ModuleNotFoundError as error:
            raise BadInput(f"roofplan {cmd_name} needs {error.name}, which is not installed; see the extras in the README") from None
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of sub-commands in ``--help``."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="roofplan")
def roofplan() -> None:
    """Plan, price and simulate training and serving of language models on GPU clusters, before renting one."""


def main() -> NoReturn:
    """The console script ``roofplan``."""
    run(roofplan, "roofplan")
