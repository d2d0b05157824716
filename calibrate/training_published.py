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
    batch, s, layers, h, n = run.global_batch_seqs, run.seq_len, run.layers, run.hidden, run.num_gpus
    if rule.flops != "hardware" or not (run.tflops_per_gpu and batch and s and layers and h and n):
        return None
    vocab = run.vocab or rule.vocab
    flops = 96.0 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    return flops / (n * run.tflops_per_gpu * 1e12)


def feasibility(run: TrainingRun, rule: SourceRule) -> bool | None:
    """True: it ran; False: clearly measured out of device memory; None: no usable label.

    "crash/oom" does not tell which of the two it was, a formula did not run, and a row with a step time ran whatever its note says.
    """
    if rule.computed or failed_unclear(run):
        return None
    if run.step_time_s:
        return True
    notes = re.sub(r"close to oom|(?:brink of |at )?(?:cpu|host)[ -]oom|no oom|not oom", "", run.notes, flags=re.I)
    if re.search(r"\boom(?:s|ed)?\b|out of memory", notes, re.I):
        return False
    stated = run.tflops_per_gpu or run.peak_mem_gb or re.search(r"max(?:imum)? (?:trainable )?seq|feasibility", notes, re.I)
    return True if stated else None


def failed_unclear(run: TrainingRun) -> bool:
    """Whether the run failed for a reason its source does not separate from others."""
    return bool(re.search(r"crash/oom|\b(?:fail(?:ed|ure)?|crash(?:ed)?|hang|hung)\b", run.notes, re.I)) and not run.step_time_s
