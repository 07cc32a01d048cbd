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
from tests.core.words import assert_words, refusal
from tests.plot.drawn import labelled, texts

BEALE = landscape.functions.beale
TXS = {"sgd": gradtx.sgd(0.01), "adam": gradtx.adam(0.1)}


def test_race_draws_where_each_optimizer_goes():
    with jax.numpy_dtype_promotion("standard"):
        ax = plot.race(TXS | {"optax": optax.adam(0.1)}, BEALE, steps=20)
    lines = labelled(ax)
    for name, tx in TXS.items():
        way = landscape.trajectory(tx, BEALE, np.float32(BEALE.start), 20)
        np.testing.assert_allclose(lines[name].get_xydata(), way, rtol=1e-6)
    np.testing.assert_allclose(lines["optax"].get_xydata(), lines["adam"].get_xydata(), rtol=1e-3)
    assert texts(ax) == ["sgd", "adam", "optax", "start", "minimum", "saddles"]
    assert (ax.get_xlim(), ax.get_ylim()) == BEALE.domain
    assert pyplot.get_fignums() == [ax.figure.number]


def test_race_on_a_function_of_ones_own():
    ax = plot.race([gradtx.sgd(0.1)], lambda w: w[0] ** 2 + w[1] ** 2, steps=2, start=[1, 1.0], x=(-1, 2), y=(-1, 3))
    line = labelled(ax)["sgd(learning_rate=0.1, momentum=None,\nnesterov=False)"]
    np.testing.assert_allclose(line.get_xydata(), [[1, 1], [0.8, 0.8], [0.64, 0.64]], rtol=1e-6)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (-1, 3))


def test_race_with_noise():
    noisy = landscape.functions.noisy(landscape.functions.valley, 0.5)
    key = jax.random.key(3)
    lines = labelled(plot.race({"a": gradtx.sgd(0.1), "b": gradtx.sgd(0.1)}, noisy, steps=10, key=key))
    way = landscape.trajectory(gradtx.sgd(0.1), noisy, np.float32(noisy.function.start), 10, key=key)
    for name in "ab":  # the same noise for all
        np.testing.assert_allclose(lines[name].get_xydata(), way, rtol=1e-6)
    other = labelled(plot.race({"a": gradtx.sgd(0.1)}, noisy, steps=10))
    assert other["a"].get_xydata().tolist() != lines["a"].get_xydata().tolist()


def test_race_says_who_is_not_finite():
    ax = plot.race({"sgd": gradtx.sgd(0.1), "slow": gradtx.sgd(1e-4)}, BEALE, steps=10)
    assert texts(ax)[0].startswith("sgd: not finite from step ")
    assert texts(ax)[1] == "slow"


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


def test_an_animation_has_a_frame_for_each_step(tmp_path):
    ax = plot.race(TXS, BEALE, steps=12, save=tmp_path / "race.gif", frames_per_second=10)
    assert pyplot.get_fignums() == [ax.figure.number]  # the animation is on a figure of its own
    frames, durations = zip(*frames_of(tmp_path / "race.gif"), strict=True)
    assert len(frames) == 13
    assert durations == (100,) * 12 + (2000,)
    assert frames[0].shape == (480, 640, 3)
    assert (frames[0][-1] == 255).all()
    drawn = [near(frame, axes.COLORS[1]) for frame in frames]
    assert drawn[0] < drawn[4] < drawn[12]
    for one, other in itertools.pairwise(frames):
        assert (one[:40] != other[:40]).any()  # the step in the title
        assert (one[:, 460:][40:] == other[:, 460:][40:]).all()  # nothing moves in the legend
    assert (tmp_path / "race.gif").stat().st_size < 250_000


def test_a_trail_is_as_long_as_it_is_asked_to_be(tmp_path):
    plot.race(TXS, BEALE, steps=8, save=str(tmp_path / "whole.GIF"))
    plot.race(TXS, BEALE, steps=8, save=str(tmp_path / "short.gif"), trail=2)
    whole, short = ([frame for frame, _ in frames_of(tmp_path / name)][-1] for name in ("whole.GIF", "short.gif"))
    assert 20 < near(short, axes.COLORS[1]) < 0.7 * near(whole, axes.COLORS[1])


def test_a_still(tmp_path):
    plot.race(TXS, BEALE, steps=3, save=tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as image:
        assert image.size == (750, 480)


@pytest.fixture
def ffmpeg(tmp_path):
    """Keeps what it is given beside the file it is asked to write, and fails at a file called so."""
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
        yield


@pytest.mark.usefixtures("ffmpeg")
def test_an_mp4_is_written_by_ffmpeg(tmp_path):
    plot.race(TXS, BEALE, steps=3, save=tmp_path / "race.mp4", frames_per_second=5)
    said = (tmp_path / "race.mp4").read_text()
    assert_words(said, "-f rawvideo", "-pix_fmt rgba", "-s 640x480", "-r 5", "-pix_fmt yuv420p")
    assert said.endswith(f" {(4 + 10) * 640 * 480 * 4}")  # each step, and two seconds of rest
    text = refusal(RuntimeError, plot.race, TXS, BEALE, steps=3, save=tmp_path / "fails.mp4")
    assert_words(text, "gradtx.plot.race: ffmpeg could not write", "fails.mp4", "no room left")


def test_an_mp4_without_ffmpeg(tmp_path):
    with matplotlib.rc_context({"animation.ffmpeg_path": "no-such-ffmpeg"}):
        text = refusal(RuntimeError, plot.race, TXS, BEALE, save=tmp_path / "race.mp4")
    assert_words(text, "gradtx.plot.race: save is", "Install ffmpeg, or save as .gif")


# Refusals -------------------------------------------------------------------------------------------------------------


def test_optimizers_that_are_refused():
    who = "gradtx.plot.race: "
    text = refusal(TypeError, plot.race, {"sgd": gradtx.sgd(0.1), "mine": lambda g: g}, BEALE)
    assert_words(text, f"{who}txs['mine']")
    assert_words(refusal(TypeError, plot.race, [gradtx.sgd(0.1), 0.1], BEALE), f"{who}txs[1]")
    assert_words(refusal(TypeError, plot.race, {"adam": gradtx.adam}, BEALE), f"{who}txs['adam']")
    for wrong in (gradtx.adam(0.1), "adam", None, optax.sgd(0.1)):
        text = refusal(TypeError, plot.race, wrong, BEALE)
        assert_words(text, f"{who}txs is a {type(wrong).__name__}; allowed: a dict of optimizers by name", "For one")
    for wrong in ({}, []):
        assert_words(refusal(ValueError, plot.race, wrong, BEALE), f"{who}txs is empty; allowed: at least one")
    text = refusal(ValueError, plot.race, [gradtx.sgd(0.1), gradtx.sgd(0.1)], BEALE)
    assert_words(text, f"{who}txs has two optimizers sgd(learning_rate=0.1", "Name them with a dict")
    sweep = jax.vmap(gradtx.sgd)(np.ones(3))
    assert_words(refusal(ValueError, plot.race, {"sgd": sweep}, BEALE), f"{who}txs['sgd']", "sweep of 3 optimizers")


def test_other_arguments_that_are_refused(tmp_path):
    who = "gradtx.plot.race: "
    assert_words(refusal(TypeError, plot.race, TXS, 3.0), f"{who}function is a float; allowed: a function")
    text = refusal(ValueError, plot.race, TXS, landscape.functions.rosenbrock.replace(dimension=3))
    assert_words(text, f"{who}rosenbrock has dimension 3; allowed: 2")
    text = refusal(ValueError, plot.race, TXS, lambda w: w[0], x=(0, 1), y=(0, 1))
    assert_words(text, f"{who}start is None, and the function has no start of its own; allowed: two numbers")
    for wrong in (1.0, [1.0, 2.0, 3.0], "ab", [float("nan"), 0.0], [[1.0, 2.0]]):
        text = refusal(ValueError, plot.race, TXS, BEALE, start=wrong)
        assert_words(text, f"{who}start is {wrong!r}; allowed: two finite numbers")
    for name, wrong, allowed in (
        ("steps", 0, "1 to 10000"),
        ("frames_per_second", 51, "1 to 50"),
        ("trail", 0, "1 to"),
    ):
        text = refusal(ValueError, plot.race, TXS, BEALE, **{name: wrong})
        assert_words(text, f"{who}{name} is {wrong}; allowed: {allowed}")
    for wrong in ("race.avi", "race", tmp_path / "gif"):
        text = refusal(ValueError, plot.race, TXS, BEALE, save=wrong)
        assert_words(text, f"{who}save is {str(wrong)!r}; allowed: a name that ends in .gif, .mp4 or .png")
    assert_words(refusal(TypeError, plot.race, TXS, BEALE, save=3), f"{who}save is a int; allowed: a file name")
    assert_words(refusal(TypeError, plot.race, TXS, BEALE, ax=3), "ax is a int; allowed: one matplotlib Axes")


def test_the_palette_has_the_colours_of_all_lines():
    colors = races._palette(np.full((10, 10, 4), 255, np.uint8)).getpalette()
    palette = np.array(colors).reshape(-1, 3)
    for color in (*axes.COLORS, "white"):
        assert np.abs(palette - 255 * np.array(to_rgb(color))).max(axis=1).min() < 1
