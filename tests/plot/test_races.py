"""Races: who runs, what is drawn, and what is written."""

import itertools
import stat
import sys

import jax
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

import gradtx
from gradtx import landscape, plot
from gradtx.plot import axes, races
from tests.plot.drawn import bowl, labelled, on_axes, texts

BEALE = landscape.functions.beale
TXS = {"sgd": gradtx.sgd(0.01), "adam": gradtx.adam(0.1)}
race = on_axes(plot.race)


def test_race_draws_where_each_optimizer_goes():
    with jax.numpy_dtype_promotion("standard"):
        ax = plot.race(TXS | {"optax": optax.adam(0.1)}, BEALE, steps=8)
    lines = labelled(ax)
    for name, tx in TXS.items():
        way = landscape.trajectory(tx, BEALE, np.float32(BEALE.start), 8)
        np.testing.assert_allclose(lines[name].get_xydata(), way, rtol=1e-5)
    np.testing.assert_allclose(lines["optax"].get_xydata(), lines["adam"].get_xydata(), rtol=1e-3)
    assert texts(ax) == ["sgd", "adam", "optax", "start", "minimum", "saddles"]
    assert (ax.get_xlim(), ax.get_ylim()) == BEALE.domain
    assert pyplot.get_fignums() == [ax.figure.number]
    ax = race({"sgd": gradtx.sgd(0.1)}, BEALE, steps=8)
    assert texts(ax)[0].startswith("sgd: not finite from step ")


def test_race_on_a_function_of_ones_own():
    ax = race([gradtx.sgd(0.1)], bowl, steps=2, start=[1, 1.0], x=(-1, 2), y=(-1, 3))
    line = labelled(ax)["sgd(learning_rate=0.1, momentum=None,\nnesterov=False)"]
    np.testing.assert_allclose(line.get_xydata(), [[1, 1], [0.8, 0.8], [0.64, 0.64]], rtol=1e-6)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (-1, 3))


def test_race_with_noise():
    noisy, key = landscape.functions.noisy(landscape.functions.valley, 0.5), jax.random.key(3)
    lines = labelled(race({"a": gradtx.sgd(0.1), "b": gradtx.sgd(0.1)}, noisy, steps=10, key=key))
    way = landscape.trajectory(gradtx.sgd(0.1), noisy, np.float32(noisy.function.start), 10, key=key)
    for name in "ab":  # the same noise for all
        np.testing.assert_allclose(lines[name].get_xydata(), way, rtol=1e-5)


# Files ----------------------------------------------------------------------------------------------------------------


def frames_of(file):
    with Image.open(file) as image:
        for index in range(image.n_frames):
            image.seek(index)
            yield np.asarray(image.convert("RGB")).astype(int), image.info["duration"]


def near(frame, color):
    """How many points of the picture have the colour, the legend beside it left out."""
    picture = frame[60:420, 70:430]
    return int((np.abs(picture - 255 * np.array(to_rgb(color))).max(axis=-1) < 12).sum())


def test_an_animation_has_a_frame_for_each_step_and_trails_as_long_as_asked(tmp_path):
    ax = plot.race(TXS, BEALE, steps=5, save=tmp_path / "race.GIF", frames_per_second=10)
    assert pyplot.get_fignums() == [ax.figure.number]  # the animation is on a figure of its own
    frames, durations = zip(*frames_of(tmp_path / "race.GIF"), strict=True)
    assert len(frames) == 6
    assert durations == (100,) * 5 + (2000,)
    assert frames[0].shape == (480, 640, 3)
    assert (frames[0][-1] == 255).all()
    drawn = [near(frame, axes.COLORS[1]) for frame in frames]
    assert drawn[0] < drawn[2] < drawn[5]
    for one, other in itertools.pairwise(frames):
        assert (one[:40] != other[:40]).any()  # the step in the title
        assert (one[:, 460:][40:] == other[:, 460:][40:]).all()  # nothing moves in the legend
    assert (tmp_path / "race.GIF").stat().st_size < 250_000
    race(TXS, BEALE, steps=5, save=str(tmp_path / "short.gif"), trail=1)
    short = [near(frame, axes.COLORS[1]) for frame, _ in frames_of(tmp_path / "short.gif")][-1]
    assert 20 < short < 0.7 * drawn[-1]


def test_a_still_and_the_palette(tmp_path):
    plot.race(TXS, BEALE, steps=8, save=tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as image:
        assert image.size == (750, 480)
    colors = races._palette(np.full((10, 10, 4), 255, np.uint8)).getpalette()
    palette = np.array(colors).reshape(-1, 3)
    for color in (*axes.COLORS, "white"):
        assert np.abs(palette - 255 * np.array(to_rgb(color))).max(axis=1).min() < 1


def test_an_mp4_is_written_by_ffmpeg(tmp_path):
    """A program that keeps what it is given beside the file it is asked to write, and fails at a file called so."""
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "if sys.argv[-1].endswith('fails.mp4'):\n"
        "    sys.exit('no room left')\n"
        "given = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'w').write(' '.join(sys.argv[1:-1]) + f' {len(given)}')\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with matplotlib.rc_context({"animation.ffmpeg_path": str(program)}):
        race(TXS, BEALE, steps=2, save=tmp_path / "race.mp4", frames_per_second=5)
        said = (tmp_path / "race.mp4").read_text()
        for words in ("-f rawvideo", "-pix_fmt rgba", "-s 640x480", "-r 5", "-pix_fmt yuv420p"):
            assert words in said
        assert said.endswith(f" {(3 + 10) * 640 * 480 * 4}")  # each step, and two seconds of rest
        with pytest.raises(RuntimeError, match=r"gradtx.plot.race: ffmpeg could not write '.*fails.mp4': no room left"):
            race(TXS, BEALE, steps=2, save=tmp_path / "fails.mp4")
