"""Prints what `vllm bench serve` measured beside what was predicted: compare.py [FILE ...], by default all of measured/.

Reads predicted.json beside this file and the JSON that bench.sh saved, matches them by request rate (between two predicted rates it
interpolates), and writes comparison.csv. Needs nothing but Python.
"""

import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
METRICS = {
    "ttft_s_mean": ("mean_ttft_ms", 1e-3),
    "ttft_s_p50": ("median_ttft_ms", 1e-3),
    "ttft_s_p99": ("p99_ttft_ms", 1e-3),
    "tpot_s_mean": ("mean_tpot_ms", 1e-3),
    "tpot_s_p50": ("median_tpot_ms", 1e-3),
    "tpot_s_p99": ("p99_tpot_ms", 1e-3),
    "e2e_s_mean": ("mean_e2el_ms", 1e-3),
    "output_tokens_per_s": ("output_throughput", 1.0),
}
"""Name in predicted.json -> (name in the benchmark's JSON, factor to seconds)."""


def main(arguments):
    predicted = json.loads((HERE / "predicted.json").read_text(encoding="utf-8"))
    files = [Path(name) for name in arguments] or sorted((HERE / "measured").glob("*.json"))
    if not files:
        print("nothing measured yet: run bench.sh first", file=sys.stderr)
        return 2
    rows = []
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            rows += compared(predicted, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{file}: not a result of vllm bench serve: {error!r}", file=sys.stderr)
            return 2
    rows.sort(key=lambda row: (row["rate_per_s"], list(METRICS).index(row["metric"])))
    show(rows, predicted)
    with (HERE / "comparison.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=["rate_per_s", "metric", "predicted", "measured", "error_frac"])
        writer.writeheader()
        writer.writerows(rows)
    return 0


def compared(predicted, record):
    """One row for each metric that is both measured and predicted at the record's rate; error = predicted / measured - 1."""
    rate = float(record["request_rate"])
    found = []
    for name, (key, factor) in METRICS.items():
        value = at_rate(predicted["curve"], rate, name)
        if value is None or record.get(key) is None:
            continue
        measured = float(record[key]) * factor
        error = value / measured - 1 if measured else float("inf")
        found.append({"rate_per_s": rate, "metric": name, "predicted": value, "measured": measured, "error_frac": error})
    return found


def at_rate(curve, rate, name):
    """The predicted value at a rate, by straight line between the two rates around it; None outside or where it was not predicted."""
    points = sorted((float(row["rate_per_s"]), float(row[name])) for row in curve if row.get(name) is not None)
    for x, y in points:
        if abs(x - rate) <= 1e-3 * rate:
            return y
    below = [p for p in points if p[0] < rate]
    above = [p for p in points if p[0] > rate]
    if not below or not above:
        return None
    (x0, y0), (x1, y1) = below[-1], above[0]
    return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)


def number(value):
    """Five digits, all of the whole ones."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def show(rows, predicted):
    print(f"{predicted['model']} on {predicted['n_gpus']} x {predicted['gpu']}; promised: {predicted['slo'] or 'nothing'}")
    print(f"{'requests/s':>10}  {'metric':<20} {'predicted':>12} {'measured':>12} {'error':>8}")
    for row in rows:
        numbers = [f"{number(row[name]):>12}" for name in ("predicted", "measured")]
        print(f"{number(row['rate_per_s']):>10}  {row['metric']:<20} {' '.join(numbers)} {row['error_frac']:>+8.1%}")
    if not rows:
        print("no measured rate lies inside the predicted curve")
    expected = predicted.get("error_frac")
    if expected:
        print(f"expected error of the prediction: {expected:.0%}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
