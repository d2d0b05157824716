"""Plays a measured point of disaggregated serving: its clients against both pools and the links between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..costmodels.serving_ops import ServeSystem
from ..scenarios.clients import Clients
from ..scenarios.deployment import Deployment
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, Floats64, Ints64, ServeWorkload, ServingEngine
from ..sim.deployment import simulate_deployment
from ..sim.replica_kind import replica_model
from .serving_disagg import Split

PLAYED_WAVES = 4
"""Waves of requests that are played where clients are many: the first is all clients at once, the last drains, and the third stands for
all between."""
FEW_CLIENTS = 256
"""Loads of so many clients are played in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """Seconds at which each request was sent, its first and last token came back, its lengths, and how long the benchmark took."""

    sent_s: Floats64
    first_s: Floats64
    finish_s: Floats64
    prompt: Ints64
    output: Ints64
    end_s: float


def n_requests(clients: int, rounds: int) -> int:
    """Requests to play for this many clients that send ``rounds`` each."""
    return max(clients * (rounds if clients <= FEW_CLIENTS else PLAYED_WAVES), 20)


def play_split(
    model: ModelSpec, system: ServeSystem, plan: EnginePlan, split: Split, engine: ServingEngine, work: ServeWorkload, clients: int
) -> Played:
    """Both pools under a closed loop of clients. Raises BadInput when a layout cannot run.

    Prefill workers launch every kernel one by one (the suite runs them without CUDA graphs); the decode worker answers.
    """
    read_s = engine.frontend_cpu_s + engine.token_cpu_s * float(work.prompt_tokens.mean())
    engine = replace(engine, request_cpu_s=engine.request_cpu_s + read_s)
    bare = split.recipe.kernels(replace(engine, graph_tokens=(), expert_kernel=""))
    batched = replace(engine, sequence_cpu_s=engine.sequence_cpu_s / split.stream_steps)
    kinds = {
        "prefill": replica_model(model, split.prefill, replace(system, engine=bare), work),
        "decode": replica_model(model, plan, replace(system, engine=batched), work),
    }
    pools = Deployment(
        plan=plan,
        n_replicas=split.n_decode,
        prefill=split.prefill,
        n_prefill=split.n_prefill,
        decode_answers=True,
        decode_first=split.decode_first,
        poll_steps=split.poll_steps,
        decode_in_turn=True,
    )
    load = Clients(n_clients=clients, ramp_s=clients / split.rate_per_s if split.rate_per_s else 0.0)
    run = simulate_deployment(model, system.cluster, pools, work, engine=engine, kinds=kinds, clients=load)
    columns = run.work.arrival_s, run.first_s, run.finish_s, work.prompt_tokens, work.output_tokens
    end_s = run.end_s
    if clients > FEW_CLIENTS:
        waves = (1, 1, split.rounds - 3, 1)
        order = np.concatenate([np.tile(np.arange(clients) + i * clients, times) for i, times in enumerate(waves)])
        wave_s = run.work.arrival_s[3 * clients :].mean() - run.work.arrival_s[2 * clients : 3 * clients].mean()
        end_s += (split.rounds - PLAYED_WAVES) * float(wave_s)
        columns = tuple(column[order] for column in columns)
    sent, first, finish, prompt, output = columns
    return Played(sent_s=sent, first_s=first, finish_s=finish, prompt=prompt, output=output, end_s=end_s)
