"""One call for the whole folder of a serving deployment: every engine that can express it, the benchmark and a README."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..target import CannotExpress
from . import bench, readme, slurm
from .job import ServeJob
from .research import deployable, notes

ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm", "deepspeed-mii": "mii"}
"""Engine, as its folder is called -> the module that emits it."""


def engines() -> dict[str, ModuleType]:
    """Engine name -> the module that emits for it, in the order of the README."""
    return {name: importlib.import_module(f"{__package__}.{module}") for name, module in ENGINES.items()}


def serving_files(job: ServeJob) -> dict[str, str]:
    """``{file name: text}`` of the folder that runs the job; write it with ``emit.write.write_folder``."""
    runs, found = deployable(job), notes(job)
    written, omitted = emitted(runs)
    files = {name: text for engine in written.values() for name, text in engine.items()}
    files |= bench.emit(job) | slurm.emit(runs, written)
    return {"README.md": readme.render(job, engines(), written, omitted, found), **files}


def emitted(job: ServeJob) -> tuple[dict[str, dict[str, str]], dict[str, CannotExpress]]:
    """The files of each engine that can express the deployment, and for the others why they cannot."""
    written: dict[str, dict[str, str]] = {}
    omitted: dict[str, CannotExpress] = {}
    for name, module in engines().items():
        try:
            written[name] = module.emit(job)
        except CannotExpress as reason:
            omitted[name] = reason
    return written, omitted
