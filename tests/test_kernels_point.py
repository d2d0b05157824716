"""Points name themselves, their group and their sizes, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from roofplan.kernels.point import Point, to_line


def point(**shape: int | str) -> Point:
    return Point(kernel="moe_layer", family="moe", framework="roofplan-triton", dtype="bfloat16", shape=shape, flops=1.0, moved_bytes=2.0)


def test_a_key_names_the_point_whatever_the_order_of_its_columns() -> None:
    p = point(topk=2, num_tokens=1023, routing="balanced")
    assert p.key == "moe_layer/bfloat16/num_tokens=1023,routing=balanced,topk=2"
    assert point(routing="balanced", num_tokens=1023, topk=2).key == p.key
    assert point(routing="balanced", num_tokens=1024, topk=2).key != p.key


def test_groups_differ_in_text_columns_only() -> None:
    p = point(topk=2, num_tokens=1023, routing="balanced")
    assert p.group == "moe_layer/bfloat16/routing=balanced" == point(topk=8, num_tokens=1, routing="balanced").group
    assert point(topk=2, num_tokens=1023, routing="power_law_1.2").group != p.group


def test_sizes_are_octaves_of_the_integer_columns() -> None:
    assert point(num_tokens=1023, window_size=0, routing="balanced").sizes == {"num_tokens": 10.0, "window_size": 0.0}


def test_journal_lines_are_json_and_refuse_what_is_not_a_number() -> None:
    assert json.loads(to_line({"b": 1, "a": [2.5]})) == {"a": [2.5], "b": 1}
    assert to_line({}).endswith("\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line({"latency_us": float("nan")})


def test_it_imports_no_torch() -> None:
    code = "import sys, roofplan.kernels.point; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
