"""Runs emitted scripts on several CPU ranks from one warm process: torch and DeepSpeed are imported once, each rank is a fork of it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

torch = pytest.importorskip("torch", reason="torch is not installed: tests/verify/install.sh")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    deepspeed = pytest.importorskip("deepspeed", reason="deepspeed is not installed: tests/verify/install.sh")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: tests/verify/install.sh")
    for module in (
        "deepspeed.runtime.sequence_parallel.ulysses_sp",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "transformers.models.llama.modeling_llama",
        "transformers.models.mixtral.modeling_mixtral",
    ):
        importlib.import_module(module)

torch.set_num_threads(1)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else every fresh machine compiles it for minutes
transformers.logging.set_verbosity_error()


def run_ranks(n_ranks: int, folder: Path, rank_main: Callable[[int], Any], timeout_s: float = 120.0) -> list[str]:
    """Fork ``n_ranks`` copies of this process, run ``rank_main(rank)`` in each; their outputs, or AssertionError with a failed one's."""
    codes, logs = exit_codes(n_ranks, folder, rank_main, timeout_s)
    bad = next((r for r, code in enumerate(codes) if code not in (0, -signal.SIGKILL)), None)
    assert codes == [0] * n_ranks, f"exit codes {codes}\n{logs[bad if bad is not None else 0][-3000:]}"
    return logs


def exit_codes(n_ranks: int, folder: Path, rank_main: Callable[[int], Any], timeout_s: float = 120.0) -> tuple[list[int], list[str]]:
    """Exit code and output of each rank; a failed rank takes the others down at once instead of leaving them to wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = [_fork(rank, n_ranks, port, folder / f"rank{rank}.log", rank_main) for rank in range(n_ranks)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < n_ranks:
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline or any(codes.values()):
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    return [codes[pid] for pid in pids], [(folder / f"rank{r}.log").read_text() for r in range(n_ranks)]


def run_script(folder: Path, script: str, *arguments: str) -> None:
    """Execute an emitted script as ``python script …`` would, inside the calling rank."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [script, *arguments]
    runpy.run_path(str(folder / script), run_name="__main__")


def _fork(rank: int, n_ranks: int, port: int, log: Path, rank_main: Callable[[int], Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n_ranks), LOCAL_WORLD_SIZE=str(n_ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        rank_main(rank)
        code = 0
    except SystemExit as stop:
        print(stop, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


EXTRA = Path(sys.prefix) / "verify"
"""Where install.sh puts packages whose own requirements would replace torch."""

needs_extra = pytest.mark.skipif(not EXTRA.is_dir(), reason=f"{EXTRA} is missing: run tests/verify/install.sh")


def in_fork(folder: Path, check: Callable[[], None], stubs: tuple[str, ...] = (), extra: Path = EXTRA, timeout_s: float = 120.0) -> None:
    """Run ``check`` in a fork of this process that also sees the extra packages, so that they and their stubs touch no other test."""

    def rank_main(rank: int) -> None:
        os.chdir(folder)
        sys.path.append(str(extra))
        sys.meta_path.append(Stubs(stubs))
        check()

    run_ranks(1, folder, rank_main, timeout_s)


def _attribute(*owner_and_name: Any) -> Any:
    """Any attribute but Python's own is ``Anything``."""
    if owner_and_name[-1].startswith("__"):
        raise AttributeError(owner_and_name[-1])
    return Anything


class _Everything(type):
    __getattr__ = _attribute


class Anything(metaclass=_Everything):
    """A class, a function, a decorator: whatever code that is imported and never run takes it for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    __getattr__ = _attribute


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of packages that a configuration imports but never calls on a CPU: a GPU compiler, a kernel, a tracker."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = types.ModuleType(spec.name)
        module.__version__ = "3.7.1"  # type: ignore[attr-defined]
        module.__getattr__ = _attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: Any) -> None:
        pass


def refuses(call: Callable[[], Any], *errors: type[BaseException]) -> None:
    try:
        call()
    except errors:
        return
    raise AssertionError("accepted what is wrong")
