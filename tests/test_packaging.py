"""The wheel holds the tree and nothing else, runs by itself, and its base install is light."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("scenarios", "costmodels", "sim", "planner", "calibrate", "kernels")
DATA_SUFFIXES = {".toml", ".xz"}


def packaged_files() -> set[str]:
    """What a wheel must hold: the code of the six folders, their data, the root's modules and the type marker."""
    files = {f"roofplan/{p.name}" for p in [*ROOT.glob("*.py"), ROOT / "py.typed"]}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            inside_templates = ROOT / "planner" / "emit" / "templates" in path.parents
            is_data = folder == "scenarios" and path.suffix in DATA_SUFFIXES
            if path.is_file() and "__pycache__" not in path.parts and (path.suffix == ".py" or is_data or inside_templates):
                files.add(f"roofplan/{path.relative_to(ROOT)}")
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend itself from a copy of the tree: no network, and nothing is written into the checkout."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in [*FOLDERS, "__init__.py", "cli.py", "py.typed", "pyproject.toml", "README.md", "LICENSE", "NOTICE"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    build = f"import setuptools.build_meta as b; print(b.build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if not n.split("/")[0].endswith(".dist-info")}
        info = {n.split("/", 1)[1] for n in archive.namelist() if n.split("/")[0].endswith(".dist-info")}
    assert held == packaged_files()
    assert {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"} <= info
    assert "roofplan/py.typed" in held


def test_wheel_runs_by_itself(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import roofplan; from roofplan.scenarios import registry; from roofplan.costmodels.params import count_params;"
        "print(roofplan.__file__); print(count_params(registry.model('Llama-3-8B')).total, registry.cluster('H100', 8).gpu)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [str(tmp_path / "roofplan" / "__init__.py"), "8030261248 h100-sxm"]


def test_every_folder_with_code_is_a_package() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            package = ".".join(["roofplan", *path.relative_to(ROOT).parts[:-1]])
            if ROOT / "planner" / "emit" / "templates" not in path.parents:
                assert package in listed, f"{path.relative_to(ROOT)}: add {package} to packages and package-dir in pyproject.toml"
    assert set(PROJECT["tool"]["setuptools"]["package-dir"]) == listed


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"]))
def test_console_scripts_exist(script: str) -> None:
    module, function = PROJECT["project"]["scripts"][script].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_base_install_is_light() -> None:
    base = {re.split(r"[<>=~!; \[]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    assert base == {"numpy", "click", "rich", "pulp", "highspy", "simpy"}


def test_torch_is_pinned_wherever_it_is_named() -> None:
    named = [r for extra in PROJECT["project"]["optional-dependencies"].values() for r in extra if r.startswith("torch")]
    assert set(named) == {"torch==2.13.0"}
