"""Pictures in words and numbers: what each is made of and how it looks, to be compared with what is committed.

    .venv/bin/python -m tests.plot.described        # draws them again and writes tests/golden/pictures.json

So a change of a look shows as a change of a line there; look at the picture itself before you commit it.
"""

import json
import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tests.plot.drawn import PICTURES, THREE

FILE = pathlib.Path(__file__).parent.parent / "golden" / "pictures.json"
LOOKS = {
    Line2D: "label color linewidth marker markersize markeredgecolor markeredgewidth markerfacecolor alpha zorder "
    "drawstyle markevery",
    Patch: "label facecolor edgecolor linewidth linestyle hatch alpha zorder fill clip_on",
    Collection: "facecolor edgecolor linewidth linestyle hatch alpha zorder clim antialiased",
}
AXES = "xlabel ylabel xlim ylim xscale yscale facecolor axisbelow"
AXES_IN_THREE = "zlabel zlim box_aspect computed_zorder elev azim"
LEGEND = "handlelength columnspacing borderaxespad frame_on alignment"


def simple(value: Any) -> Any:
    """As JSON has it; of many numbers their type, how many are finite, the lowest, the mean and the highest."""
    if isinstance(value, np.ndarray):
        if value.shape in ((4,), (1, 4)) and 0 <= value.min() <= value.max() <= 1:
            return to_hex(value.ravel(), keep_alpha=True)
        finite = value[np.isfinite(value)]
        shown = [finite.min(), finite.mean(), finite.max()] if finite.size else []
        return [str(value.dtype), finite.size, *map(simple, map(float, shown))]
    if isinstance(value, list | tuple):
        return [simple(each) for each in value]
    if isinstance(value, np.generic):
        return simple(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def looks(artist: Any, names: str) -> dict[str, Any]:
    """What an artist says of itself."""
    found = {}
    for name in names.split():
        get = getattr(artist, f"get_{name}", None)
        found[name] = simple(get() if get else getattr(artist, name, getattr(artist, f"_{name}", None)))
    return {name: value for name, value in found.items() if value not in (None, [])}


def kind(artist: Any) -> type:
    return next(each for each in LOOKS if isinstance(artist, each))


def described_artist(artist: Any) -> dict[str, Any]:
    found = looks(artist, LOOKS[kind(artist)])
    for effect in artist.get_path_effects() or ():
        found["behind it"] = dict(effect._gc)
    if kind(artist) is Line2D:
        found["dashes"] = simple(artist._dash_pattern)
        found["data"] = simple(artist.get_data_3d() if hasattr(artist, "get_data_3d") else artist.get_data())
        found["in data"] = artist.get_transform() == artist.axes.transData
    elif kind(artist) is Patch:
        found["extents"] = simple(artist.get_path().get_extents(artist.get_patch_transform()).bounds)
    else:
        found["named colors"] = artist.get_cmap().name in matplotlib.colormaps and artist.get_cmap().name
        found["levels"] = simple(np.asarray(getattr(artist, "levels", [])))
        array = artist.get_array()
        found["values"] = None if array is None else simple(np.ma.getdata(array)[~np.ma.getmaskarray(array)])
    return found


def described_axis(axis: Any) -> dict[str, Any]:
    low, high = sorted(axis.get_view_interval())
    shown = [tick for tick in axis.get_major_ticks() if tick.label1.get_visible() and low <= tick.get_loc() <= high]
    ticks = [(float(tick.get_loc()), tick.label1) for tick in shown]
    lines = axis.get_gridlines()
    return {
        "ticks": [[simple(place), text.get_text()] for place, text in ticks],
        "turned": simple([(t.get_rotation(), t.get_ha(), t.get_rotation_mode()) for _, t in ticks[:1]]),
        "grid": looks(lines[0], "visible color linewidth") if lines else None,
        "labelpad": axis.labelpad,
        "label": looks(axis.label, "rotation ha va size"),
    }


def described_legend(legend: Any, ax: Any) -> dict[str, Any]:
    box = legend.get_bbox_to_anchor().transformed(ax.transAxes.inverted())
    return looks(legend, LEGEND) | {
        "texts": [text.get_text() for text in legend.get_texts()],
        "title": legend.get_title().get_text(),
        "patches": [described_artist(each) for each in legend.legend_handles if isinstance(each, Patch)],
        "place": [legend._loc_real, *simple(box.bounds)],
        "columns": legend._ncols,
    }


def described_axes(ax: Any, name: str) -> dict[str, dict[str, Any]]:
    """By what it is: the axes, each axis, the legend, each artist, and the axes within these."""
    three = ax.name == "3d"
    found = {name: looks(ax, AXES + (f" {AXES_IN_THREE}" if three else ""))}
    found[name]["place"] = simple(ax.get_position().bounds)
    found[name]["sides"] = [name for name, side in ax.spines.items() if side.get_visible()]
    for which in "xyz" if three else "xy":
        found[f"{name}, {which}"] = described_axis(getattr(ax, f"{which}axis"))
    if ax.get_legend() is not None:
        found[f"{name}, legend"] = described_legend(ax.get_legend(), ax)
    for index, artist in enumerate((*ax.lines, *ax.patches, *ax.collections)):
        found[f"{name}, {kind(artist).__name__} {index}"] = described_artist(artist)
    for index, within in enumerate(ax.child_axes):
        found |= described_axes(within, f"{name}, within it {index}")
    return found


def described(name: str) -> dict[str, dict[str, Any]]:
    """One of the pictures, on a figure without a layout engine, and the strips and bars beside it."""
    figure = Figure(figsize=(8, 5))
    PICTURES[name](ax=figure.add_subplot(projection="3d" if name in THREE else None))
    figure.draw_without_rendering()
    beside = [ax for ax in figure.axes if ax not in figure.axes[0].child_axes]
    return {key: value for i, ax in enumerate(beside) for key, value in described_axes(ax, f"axes {i}").items()}


def differences(was: Any, now: Any, where: str = "") -> list[str]:
    """Where two descriptions differ: numbers by more than what text and float32 are measured and computed to."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [line for key in {**was, **now} for line in differences(was.get(key), now.get(key), f"{where} {key}")]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [line for i, (a, b) in enumerate(zip(was, now)) for line in differences(a, b, f"{where}[{i}]")]
    same = was == now
    if isinstance(was, int | float) and isinstance(now, int | float) and not isinstance(was, bool):
        same = abs(was - now) <= 1e-4 * max(1e-3, abs(was)) or (" place" in where and abs(was - now) < 0.01)
    return [] if same else [f"{where.strip()}: {was!r} is committed, drawn is {now!r}"]


def main() -> None:
    found = {f"{name}: {part}": value for name in PICTURES for part, value in described(name).items()}
    lines = [f"{json.dumps(part)}: {json.dumps(value)}" for part, value in found.items()]
    head = f'"command": "python -m tests.plot.described",\n"matplotlib": "{matplotlib.__version__}"'
    FILE.write_text("{\n" + ",\n".join([head, *lines]) + "\n}\n")


if __name__ == "__main__":
    main()
