"""Finds nouns by name, alias or path: models, accelerators, links, clusters, frameworks. Never the network."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TypeVar

from . import hf_config
from .errors import BadInput, UnknownName
from .framework import Framework
from .hardware import Accelerator, Cluster, Link
from .load import by_name, load, names, read_text, read_toml
from .model import ModelSpec

T = TypeVar("T")


def model(name_or_path: str) -> ModelSpec:
    """A model by alias (``llama3-8b``), Hugging Face id, or path of a ``config.json``, its folder or a ModelSpec TOML.

    A name that starts with ``.``, ``/`` or ``~`` is a path; any other is looked up first and taken as a path only if unknown.
    Raises UnknownName, or BadFile when the path does not hold a model.
    """
    stem = "" if name_or_path.startswith((".", "/", "~")) else find("models", name_or_path)
    if stem:
        return by_name(ModelSpec, "models", stem, "model")
    text = os.path.expanduser(name_or_path)
    path = Path(text)
    if path.suffix == ".toml" and os.path.exists(text):
        return load(ModelSpec, path)
    if os.path.exists(text) or path.suffix == ".json" or name_or_path.startswith((".", "/", "~")):
        return hf_config.read(path)
    raise UnknownName("model", name_or_path, names("models"))


def accelerator(name: str) -> Accelerator:
    """A GPU or NPU by name or alias (``h100-sxm``, ``H100-80GB``); raises UnknownName."""
    return _named(Accelerator, "hardware", name, "GPU")


def link(name: str) -> Link:
    """A connection by name; raises UnknownName."""
    return _named(Link, "links", name, "link")


def framework(name: str) -> Framework:
    """A training framework by name or alias; raises UnknownName."""
    return _named(Framework, "frameworks", name, "framework")


def cluster(name: str, n_gpus: int, gpus_per_node: int | None = None) -> Cluster:
    """A cluster by its own name, or the default cluster of a GPU: the file of the same name, else the first with that ``gpu``.

    Raises UnknownName, or BadInput when ``n_gpus`` does not fill whole nodes.
    """
    stem = find("clusters", name)
    if not stem:
        gpu = accelerator(name).name
        stem = find("clusters", gpu) or _first_cluster_of(gpu)
    return by_name(Cluster, "clusters", stem, "cluster").with_gpus(n_gpus, gpus_per_node)


def find(folder: str, name: str) -> str:
    """The stem of the data file that has this name or alias, or '' if none has.

    Case, hyphens, underscores and spaces do not count: ``A100_SXM`` finds ``a100-sxm``. A file's own name wins over aliases.
    """
    wanted = _squash(name)
    stems = _stems(folder)
    if not wanted or wanted in stems:
        return stems.get(wanted, "")
    for stem, text in _texts(folder).items():
        if wanted in text and any(wanted == _squash(alias) for alias in _aliases(folder, stem)):
            return stem
    return ""


def _named(cls: type[T], folder: str, name: str, kind: str) -> T:
    return by_name(cls, folder, find(folder, name) or name, kind)


def _squash(name: str) -> str:
    return re.sub(r"[^\w./+]|_", "", name.lower())


@cache
def _stems(folder: str) -> dict[str, str]:
    return {_squash(stem): stem for stem in names(folder)}


@cache
def _texts(folder: str) -> dict[str, str]:
    """Squashed text of every file: a file whose text lacks the name need not be parsed, which keeps a cold start short."""
    return {stem: _squash(read_text(path)) for stem, path in names(folder).items()}


def _aliases(folder: str, stem: str) -> list[str]:
    data = read_toml(names(folder)[stem])
    return [*data.get("aliases", []), *data.get("hf_ids", [])]


def _first_cluster_of(gpu: str) -> str:
    for stem in names("clusters"):
        if by_name(Cluster, "clusters", stem, "cluster").gpu == gpu:
            return stem
    raise BadInput(f"no cluster of {gpu} is known; add scenarios/clusters/{gpu}.toml, or name one of {', '.join(names('clusters'))}")
