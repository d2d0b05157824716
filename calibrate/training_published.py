"""What a source published about a run, in seconds and as a memory label."""

from __future__ import annotations

import re

from .training_rows import TrainingRun
from .training_sources import SourceRule


def published_step_s(run: TrainingRun, rule: SourceRule) -> float | None:
    """Seconds of a step: as stated, or from hardware TFLOPs by ``96 B s l h² (1 + s/6h + V/16lh)``; None if neither or too coarse.

    Source: Narayanan et al. 2021, equation 3 (the recomputed forward is counted).
    """
    if run.tokens_per_s_per_gpu is not None and run.tokens_per_s_per_gpu < rule.min_tokens_per_s:
        return None
    if run.step_time_s:
        return run.step_time_s
    if (
        rule.flops == "hardware"
        and run.tflops_per_gpu
        and run.global_batch_seqs
        and run.num_gpus
        and run.layers
        and run.hidden
        and run.seq_len
    ):
        h, layers, s, vocab = run.hidden, run.layers, run.seq_len, run.vocab or rule.vocab
        flops = 96.0 * run.global_batch_seqs * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
        return flops / (run.num_gpus * run.tflops_per_gpu * 1e12)
    return None


def feasibility(run: TrainingRun) -> bool | None:
    """True: it ran; False: clearly measured out of device memory; None: no usable label ("crash/oom" does not tell which)."""
    notes = run.notes
    if re.search(r"crash/oom", notes, re.I):
        return None
    vague = re.sub(r"close to oom|(?:brink of |at )?(?:cpu|host)[ -]oom|no oom|not oom", "", notes, flags=re.I)
    if re.search(r"\boom\b|out of memory|\boomed\b", vague, re.I):
        return False
    if re.search(r"fail|crash|hang", notes, re.I):
        return None
    return True if run.step_time_s or run.tflops_per_gpu or run.peak_mem_gb or "max seq" in notes or "feasibility" in notes else None
