"""``plan --task serve --out``: the folder that runs the winner, the answer it came from, and the curve its benchmark is held against."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .emit.serve.folder import serving_files
from .emit.serve.job import make_job
from .emit.write import write_folder
from .serve_ask import ServeAsk
from .serve_play import Player
from .serve_search import ServeChoice, ServeDecision, ServePart

ANSWER = "answer.json"
"""The answer of ``plan --task serve --json``."""
CURVE = (0.25, 0.5, 0.75, 1.0)
"""Loads of the predicted curve, as parts of the goodput."""


def export(ask: ServeAsk, decision: ServeDecision, answer: dict[str, Any], folder: Path) -> list[Path]:
    """Write the winner's files and ``answer.json``, whole or not at all; a mix gets a folder a layout. Raises BadInput as write_folder."""
    winner = decision.choices[0]
    files = {ANSWER: json.dumps(answer, indent=2, allow_nan=False) + "\n"}
    for number, part in enumerate(winner.parts, 1):
        place = f"part-{number}/" if len(winner.parts) > 1 else ""
        files |= {place + name: text for name, text in part_files(ask, decision, winner, part, answer).items()}
    return write_folder(files, folder)


def part_files(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice, part: ServePart, answer: dict[str, Any]) -> dict[str, str]:
    """What the emitters write for one part of a fleet."""
    promised = {name: value for name in ("ttft_s", "tpot_s") if (value := getattr(ask.slo, name)) < math.inf}
    share = part.copies * part.played.goodput_per_s / winner.goodput_per_s
    job = make_job(
        model=ask.model, deployment=part.deployment, cluster=ask.cluster, prompt_tokens=ask.prompt_tokens, output_tokens=ask.output_tokens,
        context_tokens=max(ask.context_tokens, ask.prompt_tokens + ask.output_tokens), slo=promised,
        rope_scaling=ask.rope.factor if ask.rope else 0,
        predicted={
            "goodput_per_s": share * winner.goodput_per_s, "rate_per_s": share * winner.load_per_s, "ttft_s": winner.ttft_s,
            "tpot_s": winner.tpot_s, "output_tokens_per_s_per_gpu": winner.output_tokens_per_s_per_gpu,
            "cost_usd_per_mtoken": winner.usd_per_mtoken, "error_frac": answer["plans"][0]["error_frac"], "why": answer["why"],
            "curve": curve(ask, decision, part),
        },
    )  # fmt: skip
    return serving_files(job)


def curve(ask: ServeAsk, decision: ServeDecision, part: ServePart) -> list[dict[str, float]]:
    """Means at some loads up to the goodput of all copies of a part."""
    player = Player(ask, decision.system)
    rows = []
    for load in CURVE:
        seen = player.seen(part.played.candidate, part.copies, load * part.played.goodput_per_s)
        rate = seen.rate_per_s * part.copies
        rows.append({"rate_per_s": rate, "ttft_s_mean": seen.ttft_s, "tpot_s_mean": seen.tpot_s,
                     "output_tokens_per_s": rate * ask.output_tokens})  # fmt: skip
    return rows
