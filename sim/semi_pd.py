"""Prefill and decode engines that split the SMs of the same GPUs and share weights and KV: no transfer, one pool (semi-PD)."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from ..costmodels.serving_ops import ServeSystem
from ..costmodels.sm_share import sm_share
from ..costmodels.step_times import PS, StepTimes
from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload
from .clock import NEVER
from .disagg import hand_over, hide_answers
from .engine import Replica
from .fleet import Fleet
from .policies import policy_named
from .replica_kind import ReplicaModel, replica_model
from .requests import Requests
from .router import STATELESS, Router

WATERMARK_FRAC = 0.01
"""Share of the KV pool that new prompts leave to what decodes. Source: vLLM's block manager keeps 1 % free when it admits."""


def split_kinds(
    model: ModelSpec, plan: EnginePlan, system: ServeSystem, work: ServeWorkload, prefill_sm_frac: float
) -> tuple[ReplicaModel, ReplicaModel]:
    """Both engines of a GPU priced on their share of its SMs: prefill on ``x``, decode on ``1 − x``.

    Decode has what bandwidth a full prefill step leaves it, ``1 − weights/(step time · bandwidth)``. Raises BadInput for plans whose
    engines could not share: prefix caches, speculation, pipelines, FFN on other GPUs, policies that set the answer's KV aside or prefill
    by layers.
    """
    policy = policy_named(plan.policy or system.engine.policy)
    for name, on in (
        ("prefix_cache", plan.prefix_cache),
        ("speculation", plan.speculation is not None),
        ("pp", plan.pp > 1),
        ("attention_ffn", plan.attention_ffn is not None),
        (f"policy={policy.name}", policy.reserve_output or policy.layer_tokens > 0),
    ):
        if on:
            raise BadInput(f"prefill_sm_frac={prefill_sm_frac:g} splits plain engines only; drop {name} from the plan")
    prefill = replica_model(model, plan, sm_share(system, prefill_sm_frac), work)
    assert isinstance(prefill.times, StepTimes)
    step_s = (prefill.times.step_ps(0, 0, [(prefill.limits.budget, 0)]) - prefill.times.decode[0]) / PS
    traffic = prefill.memory.weights_bytes / (step_s * system.accelerator.hbm_bytes_per_s)
    decode = replica_model(model, plan, sm_share(system, 1 - prefill_sm_frac, left_bandwidth_frac=max(1 - traffic, 0.01)), work)
    kept = max(1, round(WATERMARK_FRAC * prefill.limits.blocks))
    if kept >= prefill.limits.blocks:
        raise BadInput(f"kv_blocks={prefill.limits.blocks} leave no room for prompts beside decode's {kept}; give more")
    limits = dataclasses.replace(prefill.limits, blocks=prefill.limits.blocks - kept)
    return dataclasses.replace(prefill, limits=limits), decode


class KvPool:
    """Free KV blocks that two engines draw from."""

    def __init__(self, blocks: int) -> None:
        self.free = blocks


class TwinReplica(Replica):
    """One of two engines over one KV pool, of which it leaves ``kept`` blocks alone."""

    pool: KvPool
    kept = 0

    def run(self, until: int = NEVER) -> None:
        """As ``Replica.run``."""
        before = self.look()
        super().run(until)
        self.pool.free += self.free - before

    def let_go(self, request: int) -> None:
        """As ``Replica.let_go``."""
        before = self.look()
        super().let_go(request)
        self.pool.free += self.free - before

    def look(self) -> int:
        """Blocks free for this engine now."""
        self.free = max(self.pool.free - self.kept, 0)
        return self.free


def twin_replicas(requests: Requests, prefill: ReplicaModel, decode: ReplicaModel, n: int) -> tuple[list[TwinReplica], list[TwinReplica]]:
    """``n`` pairs of engines: (prefill's, decode's); the prefill engines keep finished prompts until they are let go."""
    pairs: tuple[list[TwinReplica], list[TwinReplica]] = ([], [])
    for _ in range(n):
        pool = KvPool(decode.limits.blocks)
        for side, kind in zip(pairs, (prefill, decode), strict=True):
            assert isinstance(kind.times, StepTimes)
            twin = TwinReplica(requests, kind.times, kind.policy, kind.limits)
            twin.pool, twin.kept, twin.hold = pool, decode.limits.blocks - kind.limits.blocks, kind is prefill
            side.append(twin)
    return pairs


class SplitGpus:
    """Pairs of engines behind a router; of ``n`` pairs the fleet holds the decode engines first, then the prefill engines.

    A prompt is computed by the prefill engine, keeps its KV where it is, and goes to the other engine, where it decodes once there is a
    seat, as soon as the block is free that its next token may need. What the decode engine preempts it computes again itself.
    """

    def __init__(self, fleet: Fleet, router: Router, n: int) -> None:
        self.fleet, self.router, self.n = fleet, router, n
        self.needs_state = router.name not in STATELESS
        self.answered: Callable[[int], None] | None = None
        self.answers = hide_answers(fleet.requests)
        self.done: list[deque[int]] = [deque() for _ in range(n)]

    def listen(self) -> None:
        """Hear of every finish."""
        self.fleet.hear(self._finished, self._stalled)
        self.fleet.watch(range(2 * self.n))

    def dispatch(self, q: int) -> bool:
        """A ready request goes to a prefill engine; False when its pair could never hold all of it."""
        requests, i = self.fleet.requests, self.router.pick(q, range(self.n))
        decode = self.fleet.replicas[i]
        if -(-(requests.prompt[q] + self.answers[q] - 1) // decode.block) > decode.blocks:
            requests.rejected.append(q)
            return False
        return self.fleet.submit(q, self.n + i)

    def _finished(self, i: int, q: int, at: int, step_ps: int) -> None:
        if i < self.n or self.answers[q] == 1:
            if self.answered is not None:
                self.answered(at)
            self.fleet.at(at, self._freed, i % self.n, -1 if i < self.n else q)
        else:
            self.fleet.at(at, self._prefilled, i - self.n, q)

    def _freed(self, i: int, prompt: int) -> None:
        """A request of pair ``i`` ended, with its prompt where that is named."""
        if prompt >= 0:
            self.fleet.replicas[self.n + i].let_go(prompt)
        self._pass_on(i)
        self.fleet.wake(self.n + i)

    def _stalled(self, i: int) -> None:
        """An engine lacks room; what the decode engine has just preempted may have made some."""
        if i < self.n:
            self.fleet.at(max(self.fleet.now, self.fleet.replicas[i].now), self._freed, i, -1)

    def _prefilled(self, i: int, q: int) -> None:
        self.done[i].append(q)
        self._pass_on(i)

    def _pass_on(self, i: int) -> None:
        """Finished prompts go to the decode engine, in order, while it has room; their KV changes hands where it lies."""
        requests, decode, done = self.fleet.requests, self.fleet.replicas[i], self.done[i]
        assert isinstance(decode, TwinReplica)
        while done:
            q = done[0]
            more = -(-(requests.prompt[q] + 1) // decode.block) - -(-requests.prompt[q] // decode.block)
            if more > decode.pool.free:
                return
            done.popleft()
            decode.pool.free -= more
            hand_over(requests, q, self.answers[q], self.fleet.now)
            self.fleet.load[i] += 1
            decode.take_over(q, self.fleet.now)
            self.fleet.wake(i)
