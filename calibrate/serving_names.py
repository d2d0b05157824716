"""What tables of measured serving points call models, engines and counts, in our names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..scenarios import registry
from .serving_formats import Unusable

SPELLINGS = {
    "kimi-k2.5": "kimi-k2", "llama v3.1 8b": "llama3.1-8b", "llama v3.1 70b": "llama3.1-70b", "deepseek-v3.1": "deepseek-v3",
    "llama-3-8b-instruct-1m": "llama3-8b",
}  # fmt: skip
"""Names in the tables -> a registered model of the same shape."""
FRAMEWORKS = {
    "vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "tensorrt-llm": "trtllm", "lmdeploy": "lmdeploy", "gpt-fast": "gpt-fast",
}  # fmt: skip
"""Framework as a table spells it -> our engine."""


def model_name(text: str) -> str:
    """The registered name of a table's model: organisation, precision and tuning suffixes dropped; Unusable if none matches."""
    plain = re.sub(r"\s*\(.*\)$", "", text).strip()
    tail = plain.rpartition("/")[2]
    cut = re.sub(r"-(nvfp4|fp8|instruct|hf|2507|0528|bf16|instruct-2507|v0\.1)$", "", tail.lower())
    cut = re.sub(r"-(nvfp4|fp8|instruct|2507)$", "", cut)
    for name in (plain, tail, SPELLINGS.get(cut, ""), cut):
        found = registry.find("models", name) if name else ""
        if found:
            return found
    raise Unusable(f"model {text!r} is not in the registry")


def count(row: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A cell of a row as a whole number, ``default`` where it is empty or no number; Unusable from 1e9 on."""
    value = row.get(key)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default
    if math.isnan(number):
        return default
    if not abs(number) < 1e9:
        raise Unusable(f"{key}={str(value)[:40]} is no count below 1e9")
    return int(number)


def engine_profile(framework: str, version: Any, is_2024: bool = False, asynchronous: bool = False) -> str:
    """The engine profile of a framework and version; releases whose host loop differs have their own. Unusable if there is none.

    ``asynchronous``: scheduling beside the GPU was switched on, as later releases do unasked.
    """
    if "minference" in framework.lower():
        raise Unusable("sparse attention of MInference is priced as a technique, not as an engine")
    words = re.split(r"[\s+]", framework.strip().lower())
    found = FRAMEWORKS.get(words[0])
    if found is None:
        raise Unusable(f"engine {framework!r} has no profile; known: {', '.join(sorted(set(FRAMEWORKS.values())))}")
    digits = re.match(r"(\d+)\.(\d+)", str(version))
    release = (int(digits[1]), int(digits[2])) if digits else ((0, 0) if is_2024 else (99, 0))
    name = next((name for upto, name in OLD_RELEASES.get(found, ()) if release < upto), found)
    return found if asynchronous and name == "vllm-0.12" else name


def release_of(framework: str, version: Any, date: str) -> Any:
    """A run's version; of a vLLM run of 2025 without one, the release before its scheduler became asynchronous unasked."""
    unsaid = not re.match(r"\d", str(version))
    return "0.11" if unsaid and framework.lower() == "vllm" and date[:4] == "2025" else version


OLD_RELEASES = {
    "vllm": (((0, 7), "vllm-0.6"), ((0, 14), "vllm-0.12")),
    "trtllm": (((0, 12), "trtllm-0.11"), ((0, 18), "trtllm-0.15"), ((1, 1), "trtllm-1.0")),
}
"""Engine -> (first release not covered, profile), oldest first."""
