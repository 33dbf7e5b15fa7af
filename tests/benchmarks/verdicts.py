"""How often the first verdict names the fault, whether healthy nets are left in peace, and whether the cure works.

    python -m tests.benchmarks.verdicts [--seeds 5] [--sets faults,healthy,borderline] [--only TEXT] [--no-cure]

Every run is a short fit under `L.Trainer` with the shipped `Diagnostics` at its defaults. A fault counts as named where
the code of the first verdict is among those that were written down for it beforehand. A healthy run counts as disturbed
where any verdict was critical at the end of any epoch. The cure is the first verdict's printed fix, applied to the same
run: its code must go, and the validation loss improve (f1 where rare classes are the point: weighing them costs loss).

The rules were tuned on all sets but `unseen_faults` and `unseen_healthy`: these were written before they were run, and
run once, with other seeds (`--first-seed 10`). `more_faults` and `more_healthy` were such a set before.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.harness import RESULTS, machine, write_results
from tests.benchmarks.verdict_case import Case
from tests.benchmarks.verdict_faults import BORDERLINE, FAULTS
from tests.benchmarks.verdict_healthy import HEALTHY
from tests.benchmarks.verdict_more import MORE_FAULTS, MORE_HEALTHY
from tests.benchmarks.verdict_runs import PLANTS, Run, fit
from tests.benchmarks.verdict_unseen import UNSEEN_FAULTS, UNSEEN_HEALTHY

SETS = {
    "faults": FAULTS,
    "healthy": HEALTHY,
    "borderline": BORDERLINE,
    "more_faults": MORE_FAULTS,
    "more_healthy": MORE_HEALTHY,
    "unseen_faults": UNSEEN_FAULTS,
    "unseen_healthy": UNSEEN_HEALTHY,
}
Row = dict[str, Any]


def judge(case: Case, seed: int, *, cure: bool) -> Row:
    """Runs a case once, and a fault a second time with the cure that was printed."""
    run = fit(case.config, seed, plant=PLANTS.get(case.plant))
    codes = [one.code for one in run.verdicts]
    first = codes[0] if codes else ""
    criticals = sorted(run.criticals | {one.code for one in run.verdicts if one.severity == "critical"})
    row: Row = {
        "case": case.name,
        "seed": seed,
        "verdicts": codes,
        "first": first,
        "criticals": criticals,
        "named": first in case.accepted if case.accepted else not criticals,
        "val_loss": run.val_loss,
        "score": run.score,
    }
    return row | _cured(case, seed, run) if cure and case.accepted and codes else row


def _cured(case: Case, seed: int, run: Run) -> Row:
    """Applies the first verdict's fix; where it has none, the fault itself is taken out, by hand."""
    verdict = run.verdicts[0]
    plant = PLANTS.get(case.plant) if verdict.fix else None
    cured = fit(case.config, seed, plant=plant, cure=verdict.fix)
    if verdict.code == "majority_class":
        better = cured.score > run.score
    else:
        better = cured.val_loss < run.val_loss or (math.isnan(run.val_loss) and math.isfinite(cured.val_loss))
    return {
        "fix": verdict.fix or ["(by hand)"],
        "gone": verdict.code not in [one.code for one in cured.verdicts],
        "better": better,
        "cured_verdicts": [one.code for one in cured.verdicts],
        "cured_val_loss": cured.val_loss,
        "cured_score": cured.score,
    }


def summarize(rows: Iterable[Row]) -> dict[str, Row]:
    """Returns a line per case: how often it was named, and how often its cure worked."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return {
        name: {
            "runs": len(group),
            "named": sum(row["named"] for row in group) / len(group),
            "first": sorted({row["first"] or "none" for row in group}),
            "criticals": sorted({code for row in group for code in row["criticals"]}),
            "gone": _share(group, "gone"),
            "better": _share(group, "better"),
            "fix": next((" ".join(row["fix"]) for row in group if "fix" in row), ""),
            "val_loss": _median(row["val_loss"] for row in group),
            "cured_val_loss": _median(row.get("cured_val_loss", math.nan) for row in group),
        }
        for name, group in cases.items()
    }


def _share(rows: list[Row], key: str) -> float | None:
    found = [row[key] for row in rows if key in row]
    return sum(found) / len(found) if found else None


def _median(values: Iterable[float]) -> float | None:
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[len(finite) // 2] if finite else None


def table(name: str, summary: Mapping[str, Row]) -> str:
    """Returns the summary of one set as text."""
    lines = [
        f"{name}",
        f"{'case':44}{'ok':>5}{'gone':>6}{'better':>7}  {'loss':>8} {'cured':>8}  first verdict, and fix",
    ]
    for case, row in summary.items():
        gone, better = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("gone", "better"))
        losses = " ".join("       -" if row[k] is None else f"{row[k]:8.3g}" for k in ("val_loss", "cured_val_loss"))
        said = ", ".join(row["first"]) + (f"; {row['fix']}" if row["fix"] else "")
        lines.append(f"{case:44}{row['named']:5.2f}{gone:>6}{better:>7}  {losses}  {said}")
    share = sum(row["named"] * row["runs"] for row in summary.values()) / sum(row["runs"] for row in summary.values())
    return "\n".join([*lines, f"{'all':44}{share:5.2f}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sets", default="faults,healthy,borderline")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--no-cure", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", default="verdicts", help="of the result file")
    options = parser.parse_args()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    start, rows, summaries = time.perf_counter(), {}, {}
    for name in options.sets.split(","):
        cases = [case for case in SETS[name] if options.only in case.name]
        rows[name] = [judge(case, seed, cure=not options.no_cure) for case in cases for seed in seeds]
        summaries[name] = summarize(rows[name])
        print(table(name, summaries[name]), flush=True)
    values = {
        "machine": machine(threads=1),
        "seconds": round(time.perf_counter() - start),
        "summary": summaries,
        "runs": rows,
    }
    print(write_results(options.name, values, options.results))


if __name__ == "__main__":
    main()
