"""Races: several optimizers from one start on a function of two numbers, as a figure or an animation."""

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.landscape.paths import trajectory
from gradtx.plot import axes, columns, heights, surfaces, trails
from gradtx.plot.axes import Axes
from gradtx.training import inputs

_WHO = "gradtx.plot.race"
_KINDS = (".gif", ".mp4", ".png")
_REST = 2.0  # seconds for which an animation shows its last frame


def race(
    txs: Any,
    function: Any,
    *,
    steps: int = 120,
    start: Any = None,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    key: Any = None,
    save: str | Path | None = None,
    frames_per_second: int = 20,
    trail: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The trajectories of several optimizers from one start on a function of two numbers, drawn as by `contour`.

        w_0 = start;   w_{t+1} = apply_updates(w_t, update of tx from the gradient at w_t)

    The result depends on the learning rates as much as on the methods. An animation has a frame of 640 x 480 pixels for
    each step, with moving dots and their trails, and shows the last frame for 2 seconds.

    Args:
      txs: a dict of optimizers (of gradtx, optax or your own) by name; or a list of them, named by their `repr`.
      function: a function of an array of shape (2,) that returns a scalar, such as `landscape.functions.beale`. Or a
        noisy one, made by `landscape.functions.noisy`: the optimizers run with the same noise, and the function
        without noise is drawn. In general it is `f(w, *, key)`, with the function to draw as the attribute `function`.
      steps: the number of updates, 1 to 10000.
      start: two numbers, the start of all; None is the function's `start`.
      x, y: (low, high), the range to draw; None is the function's `domain`.
      key: a random key for a noisy function; None is key 0.
      save: the file to write. "race.gif" and, with ffmpeg installed, "race.mp4" are animations, "race.png" the figure.
      frames_per_second: steps per second of the animation, 1 to 50.
      trail: the length of the trails in the animation, in steps, 1 or more; None is from the start.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a tx that is not an optimizer (with its name); ValueError for no optimizers, a repeated name,
    a missing start, or an unknown kind of file; RuntimeError for an .mp4 without ffmpeg; else as `contour`.

    >>> import gradtx
    >>> from gradtx import landscape, plot
    >>> ax = plot.race({"sgd": gradtx.sgd(0.01), "adam": gradtx.adam(0.1)}, landscape.functions.beale, steps=50)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['sgd', 'adam', 'start', 'minimum', 'saddles']
    """
    named = _optimizers(txs)
    steps = columns.integer(_WHO, "steps", steps, 1, 10_000)
    rate = columns.integer(_WHO, "frames_per_second", frames_per_second, 1, 50)
    length = None if trail is None else columns.integer(_WHO, "trail", trail, 1, 10_000)
    file = _file(save)
    drawn, begin = heights.shown(_WHO, function), _start(function, start)
    ways = {name: np.asarray(trajectory(tx, function, begin, steps, key=key)) for name, tx in named.items()}
    where = {"x": x, "y": y, "points": 200}
    ax = surfaces.draw_contour(_WHO, drawn, ways, where, ax=ax)
    if file is None:
        return ax
    kind = file.suffix.lower()
    if kind == ".png":
        whole: Any = ax.figure
        whole.savefig(file)
    else:
        frames = _frames(drawn, ways, where, steps, length)
        (_write_gif if kind == ".gif" else _write_mp4)(file, frames, rate)
    return ax


# What races -----------------------------------------------------------------------------------------------------------


def _optimizers(txs: Any) -> dict[str, Transform]:
    if isinstance(txs, Mapping):
        pairs = [(str(name), f"txs[{name!r}]", tx) for name, tx in txs.items()]
    elif isinstance(txs, Sequence) and not isinstance(txs, str) and not hasattr(txs, "update"):
        pairs = [(repr(tx), f"txs[{index}]", tx) for index, tx in enumerate(txs)]
    else:
        raise TypeError(
            f"{_WHO}: txs is a {type(txs).__name__}; it must be a dict of optimizers by name, or a list of them. "
            'Put a single one in a dict: {"adam": gradtx.adam(0.1)}.'
        )
    if not pairs:
        raise ValueError(f"{_WHO}: txs is empty; allowed: at least one optimizer.")
    found: dict[str, Transform] = {}
    for name, where, tx in pairs:
        if name in found:
            raise ValueError(f"{_WHO}: txs has two optimizers {name}; allowed: unique names. Name them with a dict.")
        found[name] = inputs.one_optimizer(f"{_WHO}: {where}", as_transform(tx, f"{_WHO}: {where}"))
    return found


def _start(function: Any, start: Any) -> Any:
    found = getattr(function, "start", None) if start is None else start
    if found is None:
        found = getattr(getattr(function, "function", None), "start", None)
    if found is None:
        raise ValueError(
            f"{_WHO}: start is None, and the function has no start; allowed: two numbers, the start of all optimizers."
        )
    try:
        array = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (2,) or not np.isfinite(array).all():
        raise ValueError(f"{_WHO}: start is {found!r}; allowed: two finite numbers.")
    return jnp.asarray(array)


# Animations -----------------------------------------------------------------------------------------------------------


def _file(save: Any) -> Path | None:
    if save is None:
        return None
    if not isinstance(save, str | Path):
        raise TypeError(
            f"{_WHO}: save is a {type(save).__name__}; it must be a file name, such as 'race.gif', or None."
        )
    file = Path(save)
    if file.suffix.lower() not in _KINDS:
        raise ValueError(f"{_WHO}: save is {str(save)!r}; it must be a name that ends in .gif, .mp4 or .png.")
    if file.suffix.lower() == ".mp4" and _ffmpeg() is None:
        raise RuntimeError(
            f"{_WHO}: save is {str(save)!r}, and ffmpeg is not installed; an .mp4 needs it. Install ffmpeg, or save a "
            ".gif."
        )
    return file


def _ffmpeg() -> str | None:
    from matplotlib import rcParams

    return shutil.which(str(rcParams["animation.ffmpeg_path"]))


def _frames(function: Any, ways: Any, where: dict[str, Any], steps: int, length: int | None) -> Iterator[Any]:
    """The frames as arrays of shape (height, width, 4): first that of the last step, then those of all steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax: Any = figure.add_subplot()
    surfaces.draw_contour(_WHO, function, ways, where, ax=ax)
    title = figure.suptitle(f"step {steps}", fontsize="large")
    canvas.draw()  # computes the layout, with room for the title
    every = trails.read(_WHO, ways)
    for line in [line for line in ax.lines if line.get_label() in ("_end", *(way.label for way in every))]:
        line.remove()
    figure.set_layout_engine("none")
    title.set_animated(True)
    canvas.draw()
    behind = canvas.copy_from_bbox(figure.bbox)
    for step in (steps, *range(steps + 1)):
        canvas.restore_region(behind)
        title.set_text(f"step {step}")
        moving = trails.draw(ax, [way.until(step, length) for way in every], (ax.get_xlim(), ax.get_ylim()))
        for artist in (*moving, title):
            figure.draw_artist(artist)
        for artist in moving:
            artist.remove()
        yield np.array(canvas.buffer_rgba())


def _write_gif(file: Path, frames: Iterator[Any], rate: int) -> None:
    """Write all frames with one palette, so that what does not move is the same in each and is compressed."""
    from PIL import Image

    def reduced(frame: Any) -> Any:
        return Image.fromarray(frame).convert("RGB").quantize(palette=colors, dither=Image.Dither.NONE)

    colors = _palette(next(frames))
    first, *others = (reduced(frame) for frame in frames)
    durations = [round(1000 / rate)] * len(others) + [round(1000 * _REST)]
    first.save(file, save_all=True, append_images=others, duration=durations, loop=0, optimize=False)


def _palette(frame: Any) -> Any:
    """The colours of a frame and of all lines, and shades between the lines and white for their edges."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    found = Image.fromarray(frame).convert("RGB").quantize(128, dither=Image.Dither.NONE).getpalette() or []
    few = np.array(found[: 3 * 128]).reshape(-1, 3)
    few[few.min(axis=1) > 240] = 255  # the background, and averages of it and almost equally light pixels
    lines = np.array([to_rgb(color) for color in axes.COLORS])
    shades = np.concatenate([1 - (1 - lines) * part for part in (1.0, 0.7, 0.4)])
    colors = Image.new("P", (1, 1))
    colors.putpalette(np.concatenate([few, np.rint(255 * shades).astype(int)]).ravel().tolist())
    return colors


def _write_mp4(file: Path, frames: Iterator[Any], rate: int) -> None:
    last = next(frames)
    height, width, _ = last.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
    command = [str(_ffmpeg()), "-y", "-loglevel", "error", *raw, "-pix_fmt", "yuv420p", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        pipe: Any = process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has stopped, and says why
            for frame in itertools.chain(frames, itertools.repeat(last, round(rate * _REST))):
                pipe.write(frame.tobytes())
        _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{_WHO}: ffmpeg could not write {str(file)!r}: {said.decode(errors='replace').strip()}")
