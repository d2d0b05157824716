"""Measures the GPU at hand within a stated time: ceilings first, then the least known points; killed at any moment it can go on."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..kernels.point import DeviceLost, MeasureFailed, Point, Row, to_line
from ..scenarios import registry
from ..scenarios.errors import BadFile, BadInput, CheckFailed
from .adaptive import Ceilings, Sampler
from .tables import pandas

MAX_STARTS = 2
"""A point that was in flight when this many runs were killed is not tried again."""
IDENTITY = ("device_name", "device_uuid", "driver", "torch", "triton")
"""What must not change between the runs that share a journal."""


class Bench(Protocol):
    """What measures: the GPU, or a stand-in."""

    def describe(self) -> dict[str, str | int]:
        """The device and the software, for the record."""
        ...

    def ceilings(self) -> list[Point]:
        """The large copy and the large matrix product."""
        ...

    def collectives(self) -> list[Point]:
        """Points over several GPUs, if there are several."""
        ...

    def points(self) -> list[Point]:
        """All candidates."""
        ...

    def measure(self, point: Point) -> list[Row]:
        """Rows of one point; MeasureFailed or DeviceLost."""
        ...


@dataclass(slots=True)
class Journal:
    """An append-only file, one JSON object a line: a header, then a ``begin`` and an ``end`` for each point."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    walls_s: dict[str, float] = field(default_factory=dict)
    spent_s: float = 0.0

    @classmethod
    def open(cls, path: Path, header: dict[str, Any]) -> Journal:
        """Start a journal, or take up an old one; a half-written last line is cut off.

        Raises BadFile if the file is no journal, BadInput if it was made on another device or with other software.
        """
        journal = cls(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            journal._append({"header": header})
            return journal
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            old = lines[0]["header"] if lines else header
            changed = [k for k in IDENTITY if old.get(k) != header.get(k)]
            for line in lines[1:]:
                journal._take(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{path}: not a journal of calibrate run ({error}); delete it or give another --out") from None
        if changed:
            was = ", ".join(f"{k} {old.get(k)!r} then, {header.get(k)!r} now" for k in changed)
            raise BadInput(f"{path} was measured with {was}; delete it or give another --out")
        if whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        if not lines:
            journal._append({"header": header})
        return journal

    def begin(self, key: str) -> None:
        """Note that a point is in flight."""
        self._append({"begin": key})
        self.begun[key] = self.begun.get(key, 0) + 1

    def end(self, key: str, rows: Sequence[Row], wall_s: float) -> None:
        """Keep a point's rows."""
        line = {"end": key, "rows": list(rows), "wall_s": wall_s}
        self._append(line)
        self._take(line)

    def fail(self, key: str, why: str, wall_s: float) -> None:
        """Note that a point cannot be measured here."""
        line = {"fail": key, "why": why, "wall_s": wall_s}
        self._append(line)
        self._take(line)

    def hopeless(self, key: str) -> bool:
        """Whether runs kept dying on this point."""
        return key not in self.done and self.begun.get(key, 0) >= MAX_STARTS

    def _take(self, line: dict[str, Any]) -> None:
        if "begin" in line:
            self.begun[line["begin"]] = self.begun.get(line["begin"], 0) + 1
            return
        self.spent_s += float(line["wall_s"])
        if "fail" in line:
            self.failed[line["fail"]] = str(line["why"])
            return
        self.rows += line["rows"]
        self.walls_s[line["end"]] = float(line["wall_s"])
        self.done[line["end"]] = min(float(row["latency_us"]) for row in line["rows"]) * 1e-6

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_line(line))
            file.flush()
            os.fsync(file.fileno())


def measured_ceilings(journal: Journal, points: Sequence[Point]) -> Ceilings:
    """Rates of the points that were measured; the defaults stand for those that failed."""
    rates: dict[str, float] = {}
    for point in points:
        if point.key in journal.done:
            seconds = journal.done[point.key]
            if point.flops > 0:
                rates["flops_per_s"] = point.flops / seconds
            else:
                rates["hbm_bytes_per_s"] = point.moved_bytes / seconds
    return Ceilings(**rates)


def calibrate_run(
    out: Path,
    minutes: float,
    bench: Bench,
    *,
    clock: Callable[[], float] = time.monotonic,
    note: Callable[[str, float], None] | None = None,
) -> Journal:
    """Measure until ``minutes`` are spent, counting what the journal beside ``out`` already spent, and write ``out`` (Parquet).

    ``note(text, spent_s)`` is told of each point. Raises BadInput on a bad budget or a journal of another device, CheckFailed if the GPU
    is lost (the rows so far are written).
    """
    if not 0.1 <= minutes <= 1440:
        raise BadInput(f"--minutes {minutes:g} is not between 0.1 and 1440; 5 gives a first calibration, 30 a full one")
    if out.suffix != ".parquet":
        raise BadInput(f"--out {out} must end in .parquet")
    pandas()
    described = bench.describe()
    journal = Journal.open(out.with_suffix(".journal.jsonl"), {"version": __version__, **described})
    budget_s, before_s, start_s = 60 * minutes, journal.spent_s, clock()

    def measure(point: Point) -> None:
        begin_s = clock()
        if note is not None:
            note(point.key, before_s + begin_s - start_s)
        journal.begin(point.key)
        try:
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            shared = {"gpu": gpu_name(str(described["device_name"])), "device_name": described["device_name"]}
            tail = {"driver": described["driver"], "timestamp": stamp}
            rows = [{**shared, **row, **tail} for row in bench.measure(point)]
            if not rows or not all(math.isfinite(float(row["latency_us"])) and float(row["latency_us"]) > 0 for row in rows):
                raise MeasureFailed("no time above zero was measured")
            journal.end(point.key, rows, clock() - begin_s)
        except MeasureFailed as error:
            journal.fail(point.key, str(error), clock() - begin_s)

    def pending(points: Sequence[Point]) -> list[Point]:
        return [p for p in points if p.key not in journal.done and p.key not in journal.failed and not journal.hopeless(p.key)]

    try:
        for point in [*pending(bench.ceilings()), *pending(bench.collectives())]:
            measure(point)
        sampler = Sampler(bench.points(), measured_ceilings(journal, bench.ceilings()))
        for key, seconds in journal.done.items():
            sampler.tell(key, seconds, journal.walls_s[key])
        for key in [*journal.failed, *(k for k in journal.begun if journal.hopeless(k))]:
            sampler.drop(key)
        while (chosen := sampler.choose(budget_s - before_s - (clock() - start_s))) is not None:
            assert isinstance(chosen, Point)
            measure(chosen)
            if chosen.key in journal.done:
                sampler.tell(chosen.key, journal.done[chosen.key], journal.walls_s[chosen.key])
            else:
                sampler.drop(chosen.key)
    except DeviceLost as error:
        write_table(out, journal, described)
        raise CheckFailed(f"the GPU stopped answering ({error}); {len(journal.rows)} rows are in {out}; run again to go on") from None
    write_table(out, journal, described)
    return journal


def write_table(out: Path, journal: Journal, described: dict[str, str | int]) -> None:
    """All rows as one Parquet table, written whole; provenance in its metadata under ``roofplan``. Nothing is written without rows."""
    if not journal.rows:
        return
    pd = pandas()
    import pyarrow
    import pyarrow.parquet

    frame = pd.DataFrame(journal.rows)
    for name in frame.columns:
        if pd.api.types.is_float_dtype(frame[name]) and frame[name].isna().any() and (frame[name].dropna() % 1 == 0).all():
            frame[name] = frame[name].astype("Int64")
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    provenance = {"program": f"roofplan {__version__}", **described, "failed": journal.failed, "spent_s": round(journal.spent_s, 3)}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"roofplan": json.dumps(provenance).encode()})
    part = out.with_name(out.name + ".part")
    pyarrow.parquet.write_table(table, part, compression="zstd")
    os.replace(part, out)


def gpu_name(device_name: str) -> str:
    """Our name of the card the driver names so, or the driver's name in lower case with hyphens."""
    for text in (device_name, device_name.removeprefix("NVIDIA ")):
        if found := registry.find("hardware", text):
            return found
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def find_bench() -> Bench:
    """The bench on this machine's GPU; BadInput in one sentence if torch, Triton or a GPU is missing."""
    try:
        from ..kernels.bench import open_bench
    except ImportError as error:
        raise BadInput(f"calibrate run needs torch and triton ({error.name} is missing); pip install 'roofplan[kernels]'") from None
    bench = open_bench()
    if bench is None:
        raise BadInput(
            "no CUDA GPU found: calibrate run measures the card of this machine; "
            "without one use calibrate import with public tables, or the calibrations that come with roofplan"
        )
    return bench
