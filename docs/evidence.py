"""What examples/matrix_methods.py found, as the tables and the picture of the page "Do matrix methods pay?".

python docs/evidence.py adamw.json muon.json ...      merge what the example wrote into docs/evidence.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

FILE = Path(__file__).with_suffix(".json")
NAMES = {
    "adamw": "AdamW",
    "muon": "Muon",
    "normuon": "NorMuon",
    "soap": "SOAP",
    "shampoo": "Shampoo, Adam's graft",
    "kron": "Kron",
}
COLORS = dict(zip(NAMES, ["#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"], strict=True))
Run = dict[str, Any]


def merge(paths: list[str]) -> None:
    """Write the reports as one: the runs of each horizon, those with one seed apart, in the order of the methods."""
    reports = [json.loads(Path(path).read_text()) for path in paths]
    whole: dict[str, Any] = {key: reports[-1][key] for key in ("cores", "python", "jax")}
    for report in reports:
        for run in report["runs"]:
            run["curve"] = [round(value, 4) for value in run["curve"]]
            run["held_out"] = [round(value, 5) for value in run["held_out"]]
            kind = "tuning" if len(run["held_out"]) == 1 else str(report["steps"])
            whole.setdefault(kind, []).append(run)
    for kind in whole.keys() - {"cores", "python", "jax"}:
        whole[kind].sort(key=lambda run: (list(NAMES).index(run["method"]), run["rate"], run["aux"]))
    FILE.write_text(json.dumps(whole, indent=None).replace('{"method"', '\n{"method"') + "\n")


def runs(kind: str) -> list[Run]:
    """The runs of a horizon, or of the tuning."""
    return json.loads(FILE.read_text())[kind]


def gain(run: Run, base: Run) -> tuple[float, float, float, bool]:
    """How much less than the base, paired by seed: mean, standard deviation, t, and whether it counts."""
    less = np.subtract(base["held_out"], run["held_out"])
    spread = less.std(ddof=1)
    t = float(less.mean() / spread * len(less) ** 0.5)
    return float(less.mean()), float(spread), t, abs(t) >= 5 and abs(np.sign(less).sum()) == len(less)


def reached(run: Run, base: Run, steps: int) -> int | None:
    """The step at which the mean loss of 25 batches is that of the base at its end."""
    below = np.flatnonzero(np.array(run["curve"]) <= base["curve"][-1])
    return int(below[0] + 1) * steps // len(run["curve"]) if below.size else None


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def matrix_methods(steps: str) -> str:
    """The table of a horizon."""
    base, *others = runs(steps)
    rows: list[list[str]] = []
    for run in [base, *others]:
        losses, line = np.array(run["held_out"]), [NAMES[run["method"]]]
        line += [f"{losses.mean():.3f} ({losses.std(ddof=1):.3f})"]
        if run is base:
            line, needed = [*line, "", "", ""], int(steps)
        else:
            mean, spread, t, counts = gain(run, base)
            line += [f"{mean:+.3f} ({spread:.3f})", f"{t:.1f}", "yes" if counts else "no"]
            needed = reached(run, base, int(steps))
        ms = run["ms"]
        rows.append([*line, f"{ms:.0f}", *([str(needed), f"{needed * ms / 1e3:.0f}"] if needed else ["not", ""])])
    head = ["method", "held-out loss (sd)", "less than AdamW (sd)", "t", "counts", "ms a step"]
    head += ["steps to AdamW's loss", "seconds"]
    return _table(head, rows)


def matrix_rates() -> str:
    """What the tuning found: the best pair, its loss, and the losses beside it."""
    rows: list[list[str]] = []
    for method, name in NAMES.items():
        tried = [run for run in runs("tuning") if run["method"] == method]
        if tried:
            best = min(tried, key=lambda run: run["held_out"][0])
            sides = [sorted({run[axis] for run in tried}) for axis in ("rate", "aux")]
            edge = [
                axis for axis, side in zip(("rate", "aux"), sides, strict=True) if best[axis] in (side[0], side[-1])
            ]
            rows.append([name, f"{len(tried)}", *(" ".join(f"{value:g}" for value in side) for side in sides)])
            rows[-1] += [f"{best['rate']:g}, {best['aux']:g}", f"{best['held_out'][0]:.3f}", ", ".join(edge) or "no"]
    return _table(["method", "pairs", "rates", "Adam's rates", "best", "its loss", "at an edge"], rows)


def picture() -> plt.Figure:
    """Mean losses of the batches over the steps, for each horizon."""
    kinds = [kind for kind in ("300", "1000") if kind in json.loads(FILE.read_text())]
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 3.8), layout="constrained", squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        for run in runs(kind):
            steps = np.linspace(0, int(kind), len(run["curve"]) + 1)[1:]
            axes.plot(steps, run["curve"], color=COLORS[run["method"]], label=NAMES[run["method"]], linewidth=1.6)
        axes.axhline(runs(kind)[0]["curve"][-1], color="#888888", linewidth=0.8, linestyle=":")
        axes.set(title=f"{kind} steps", xlabel="step", ylabel="loss", ylim=(None, 2.9))
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    merge(sys.argv[1:])
