"""Disaggregated serving played the plain way: one step at a time in order of start, everything looked at again after every event."""

from __future__ import annotations

from itertools import count

from roofplan.costmodels.step_times import PS


class PlainPd:
    """Prefill and decode replicas, round robin in front, links of a placement between; the rules of ``Disaggregated``."""

    def __init__(self, requests, prefill, decode, placement, kv_bytes, overlap_frac=0.0):
        self.r, self.prefill, self.decode, self.place = requests, prefill, decode, placement
        self.kv_bytes, self.overlap = kv_bytes, overlap_frac
        self.answers, requests.output[:] = requests.output[:], type(requests.output)("q", [1] * len(requests))
        self.events, self.order = [], count()
        self.queue, self.coming, self.sent, self.tail, self.where = [], [0] * len(decode), {}, {}, {}
        self.blocked = set()
        for replica in prefill + decode:
            replica.seen = []
        for replica in prefill:
            replica.hold = True
        for q in range(len(requests)):
            self.at(requests.ready[q], self.arrive, q)

    def at(self, time, action, *values):
        self.events.append((time, next(self.order), action, values))

    def start_of(self, replica):
        """When the replica could take its next step; None when it has nothing to do or no room."""
        if not replica.n_outstanding:
            return None
        coming = [self.r.ready[q] for q in replica.pending[replica.next_pending :]] + [at for at, _ in replica.loading]
        if replica in self.blocked:
            return min((at for at in coming if at > replica.now), default=None)
        working = replica.n or replica.part >= 0 or replica.waiting or replica.landed
        return replica.now if working else max(replica.now, min(coming))

    def run(self):
        replicas = self.prefill + self.decode
        while True:
            link_end, transfer = self.place.links.next_end()
            due = min(self.events, default=None, key=lambda e: e[:2])
            link_at = round(link_end * PS) if transfer >= 0 else None
            horizon = min([t for t in (due and due[0], link_at) if t is not None], default=1 << 80)
            starts = [(s, i) for i, replica in enumerate(replicas) if (s := self.start_of(replica)) is not None]
            if starts and min(starts)[0] < horizon:
                start, i = min(starts)
                self.step(replicas[i], start, i)
            elif due is None and link_at is None:
                return
            else:
                now = self.clock = horizon
                if due is not None and due[0] == now:
                    self.events.remove(due)
                    due[2](now, *due[3])
                else:
                    self.place.links.end(transfer, link_end)
                    self.moved(now, transfer)
                for replica in self.blocked:
                    replica.now = max(replica.now, now)
                self.blocked.clear()

    def step(self, replica, start, i):
        before = replica.now
        self.blocked.discard(replica)
        replica.run(start + 1)
        if replica.now == before:
            self.blocked.add(replica)
        for q, step_ps in replica.seen:
            if i >= len(self.prefill):
                self.at(replica.now, self.admit)
            elif self.answers[q] == 1:
                self.at(replica.now, lambda now, q=q: replica.let_go(q))
            else:
                if self.overlap:
                    self.at(replica.now - step_ps, self.early, q, i)
                self.at(replica.now, self.prefilled, q, i)
        replica.seen.clear()

    def arrive(self, now, q):
        last = self.decode[0]
        if -(-(self.r.prompt[q] + self.answers[q] - 1) // last.block) > last.blocks:
            self.r.rejected.append(q)
        else:
            self.turn = getattr(self, "turn", -1) + 1
            self.prefill[self.turn % len(self.prefill)].submit(q)

    def early(self, now, q, i):
        if not self.queue and self.take(q, i):
            self.tail[q] = self.r.prompt[q] * self.kv_bytes * (1 - self.overlap)
            self.send(now, q, 2 * q + 1, self.r.prompt[q] * self.kv_bytes * self.overlap)

    def prefilled(self, now, q, i):
        if q in self.where:
            self.send(now, q, 2 * q, self.tail.pop(q))
        else:
            self.queue.append((q, i))
            self.admit(now)

    def admit(self, now):
        while self.queue and self.take(*self.queue[0]):
            q, _ = self.queue.pop(0)
            self.send(now, q, 2 * q, self.r.prompt[q] * self.kv_bytes)

    def take(self, q, i):
        need = -(-(self.r.prompt[q] + 1) // self.decode[0].block)
        fit = [
            (d.n_outstanding + self.coming[j], j)
            for j, d in enumerate(self.decode)
            if d.n_outstanding + self.coming[j] < d.max_seqs and need <= d.free
        ]
        if not fit:
            return False
        j = min(fit)[1]
        self.decode[j].free -= need
        self.coming[j] += 1
        self.where[q] = (i, j)
        return True

    def send(self, now, q, transfer, n_bytes):
        path, ceiling, _ = self.place.route(self.where[q][0], len(self.prefill) + self.where[q][1])
        self.sent[q] = self.sent.get(q, 0) + 1
        self.place.links.start(transfer, n_bytes, path, now / PS, ceiling)

    def moved(self, now, transfer):
        q = transfer // 2
        self.sent[q] -= 1
        if self.sent[q] or q in self.tail:
            return
        i, j = self.where[q]
        self.prefill[i].let_go(q)
        arrives = now + round(self.place.route(i, len(self.prefill) + j)[2] * PS)
        r = self.r
        r.finish[q], r.cached[q], r.lost[q], r.ready[q] = -1, r.prompt[q], r.first[q], arrives
        r.prompt[q] += 1
        r.output[q] = self.answers[q] - 1
        self.coming[j] -= 1
        self.decode[j].take_over(q, arrives)
