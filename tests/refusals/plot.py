"""What the plots refuse: losses, tables, functions, slices, spectra, races, axes."""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import gradtx
from gradtx import landscape, plot
from tests.plot.drawn import EIGENVALUES, GRID, INF, NAN, bowl, plain, square
from tests.refusals import Refusal

FUNCTIONS, BEALE = landscape.functions, landscape.functions.beale
REFUSALS = []


def refused(draw, words, error, *arguments, **options):
    """A row: the plot's name begins the text; `words` have several parts, divided by three dots."""
    who = f"gradtx.plot.{draw.__name__}: "
    call = functools.partial(draw, *arguments, **options)
    REFUSALS.append(Refusal(f"{who}{words}", call, error, who, *words.split(" ... ")))


def rows(draw, error, table):
    """Rows of (words, arguments...), of which the last may be a dict of options."""
    for words, *arguments in table:
        options = arguments.pop() if arguments and isinstance(arguments[-1], Options) else {}
        refused(draw, words, error, *arguments, **options)


class Options(dict):
    """Keyword arguments of a call."""


# Runs -----------------------------------------------------------------------------------------------------------------

for _draw, _of in ((plot.losses, lambda loss: loss), (plot.compare, lambda loss: {"adam": loss})):
    _name = "loss" if _draw is plot.losses else "runs['adam']"
    refused(_draw, f"{_name} is empty; allowed: at least one number", ValueError, _of([]))
    refused(
        _draw,
        f"{_name} is an array ... shape (2, 3) ... allowed: one dimension ... numpy.ravel",
        ValueError,
        _of(np.ones((2, 3))),
    )
    for _wrong in ([[1.0], [1.0, 2.0]], ["1", "2"], [None], [1j], [True], "loss", {"a": [1.0]}):
        refused(_draw, f"{_name} is ... allowed: real numbers in one dimension. Convert it", TypeError, _of(_wrong))
    for _wrong in (1.0, -0.1, NAN, "0.9", True):
        refused(_draw, f"decay is {_wrong!r}; it must be a number in [0, 1)", ValueError, _of([1.0]), decay=_wrong)
    refused(
        _draw,
        "ax is a list; allowed: one matplotlib Axes, or None ... pyplot.subplots()",
        TypeError,
        _of([1.0]),
        ax=[1],
    )
rows(
    plot.losses,
    ValueError,
    [
        ("steps_per_epoch is 3; allowed: 1 to the number of updates, 2.", [1.0, 2.0], Options(steps_per_epoch=3)),
        ("steps_per_epoch is 0; allowed: 1 to", [1.0, 2.0], Options(steps_per_epoch=0)),
    ],
)
refused(plot.losses, "steps_per_epoch is 1.0; it must be an int from 1 to the", TypeError, [1.0], steps_per_epoch=1.0)
refused(plot.losses, "steps_per_epoch is True; it must be an int", TypeError, [1.0], steps_per_epoch=True)
refused(plot.losses, f"loss is {str(['a' * 99])[:57]}... (list)", TypeError, ["a" * 99, None])
refused(plot.compare, "runs is empty; allowed: at least one run", ValueError, {})
refused(plot.compare, "runs is a list; it must be a dict of losses by name ... plot.losses(loss)", TypeError, [1.0])
_words = "gradtx.adam has no argument 'momentum'. ... learning_rate ... Choose one of them: name=..."
refused(plot.learning_rate, _words, ValueError, gradtx.adam(0.1), 3, name="momentum")
for _wrong in ("0.1", None, True, [0.1], gradtx.cosine_decay_schedule):
    refused(plot.learning_rate, "learning_rate is", TypeError, _wrong, 3)
refused(plot.learning_rate, "learning_rate is an array of shape (2,); allowed: one number", ValueError, jnp.ones(2), 3)
refused(plot.learning_rate, "steps is 0; allowed: 1 to the largest count", ValueError, 0.1, 0)
refused(plot.learning_rate, "steps is 3.0; it must be an int", TypeError, 0.1, 3.0)

# Sweeps ---------------------------------------------------------------------------------------------------------------


def rows_of(table, keep):
    return {name: [value for value, kept in zip(column, keep, strict=True) if kept] for name, column in table.items()}


_missing = {name: column for name, column in GRID.items() if name != "learning_rate"}
for _draw in (plot.sensitivity, plot.heat_map):
    refused(_draw, "the table is a list; it must be a dict of columns ... to_dict", TypeError, [1.0])
    rows(
        _draw,
        ValueError,
        [
            ("the table has no column 'learning_rate'. ... Its columns: optimizer, seed, final_loss", _missing),
            ("the table has no column 'learning_rat'. Did you mean 'learning_rate'?", GRID, Options(x="learning_rat")),
            ("no column 'optimizer' ... Its columns: none", {}),
            ("unequal lengths: optimizer 12, learning_rate 12, seed 1 ... one entry per run", GRID | {"seed": [0]}),
            ("table['learning_rate'] is empty", rows_of(GRID, [False] * 12)),
            (
                "several runs of 'sgd' with learning_rate 0.1 ... and seed 0, which differ in ... Keep",
                GRID | {"seed": [0] * 12},
            ),
            (
                "best is 'least' for the column 'final_loss'; allowed: 'lowest' or 'highest'",
                GRID | {"seed": range(12)},
                Options(best="least"),
            ),
        ],
    )
    refused(_draw, "table['final_loss'] is ... allowed: real numbers", TypeError, GRID | {"final_loss": ["a"] * 12})
    refused(_draw, "table['diverged'] is of dtype float64; allowed: bool", TypeError, GRID | {"diverged": [0.5] * 12})
_holes = rows_of(GRID, [rate != 0.1 for rate in GRID["learning_rate"]])
_holes = {name: column + [GRID[name][0]] for name, column in _holes.items()}
_zero = {"optimizer": ["sgd"], "learning_rate": [0.1], "b1": [0.9], "final_loss": [0.0]}
_log = "log is True, and the lowest final_loss is 0; a log scale needs positive values. Pass log=False"
rows(
    plot.sensitivity,
    ValueError,
    [
        ("several runs of 'sgd' with learning_rate 0.1 and seed 0, which differ in final_loss, b1;", GRID),
        ("no row of the table has a finite 'learning_rate'", GRID | {"learning_rate": [NAN] * 12}),
        ("best is None for the column 'b1'; allowed: 'lowest' or 'highest'", _zero, Options(y="b1")),
        (_log, _zero, Options(log=True)),
    ],
)
rows(
    plot.heat_map,
    ValueError,
    [
        (
            "has 2 optimizers: sgd, adam; allowed: one. Keep the rows of one of them",
            GRID | {"optimizer": ["sgd"] * 6 + ["adam"] * 6},
        ),
        ("runs for 5 of the 6 pairs of learning_rate and b1 ... Missing: learning_rate 0.1 with b1 0.", _holes),
        (
            "b1 is not finite in 12 of 12 rows ... sgd may have no hyperparameter of that name",
            GRID | {"b1": [NAN] * 12},
        ),
        (_log, _zero, Options(log=True)),
    ],
)
_many = {"optimizer": ["sgd"] * 4, "learning_rate": np.arange(4.0), "b1": np.arange(4.0), "final_loss": np.ones(4)}
refused(plot.heat_map, "runs for 4 of the 16 pairs ... learning_rate 3 with b1 0, and 9 more.", ValueError, _many)

# Functions ------------------------------------------------------------------------------------------------------------

for _draw in (plot.contour, plot.surface):
    refused(_draw, "function is a float; it must be a function of a point ... beale", TypeError, 3.0)
    _words = "<lambda> of an array of shape (2,) returns float32[2]; it must return one real scalar ... jnp.sum"
    refused(_draw, _words, TypeError, lambda w: w, x=(0, 1), y=(0, 1))
    refused(_draw, "returns complex64[]", TypeError, lambda w: jax.lax.complex(w[0], w[1]), x=(0, 1), y=(0, 1))
    refused(_draw, "ax is a list; allowed: one matplotlib", TypeError, plain, ax=[1, 2], **square(3))
    for _wrong in (1.0, "ab", (1, 2, 3), (None, 1)):
        refused(_draw, f"x is {_wrong!r}; allowed: (low, high), two numbers", TypeError, plain, x=_wrong, y=(0, 1))
    for _wrong in ((1.0, 1.0), (2, 1), (0, INF), (NAN, 1), (-INF, 1)):
        _words = f"y is {_wrong!r}; allowed: (low, high), finite, with low < high"
        refused(_draw, _words, ValueError, plain, x=(0, 1), y=_wrong)
    for _wrong in (1, 2001):
        refused(_draw, f"points is {_wrong}; allowed: 2 to 2000", ValueError, plain, x=(0, 1), y=(0, 1), points=_wrong)
    rows(
        _draw,
        ValueError,
        [
            (
                "rosenbrock has dimension 10; allowed: 2. ... gradtx.plot.slice",
                FUNCTIONS.rosenbrock.replace(dimension=10),
            ),
            (
                "x is None, and the function has no domain; allowed: (low, high) ... x=(-2.0",
                plain,
                Options(y=(0, 1)),
            ),
            ("levels is 0; allowed: 1 to 200", BEALE, Options(levels=0)),
            *(
                ("allowed: finite, increasing numbers", BEALE, Options(levels=w))
                for w in ([2.0, 1.0], [1.0, 1.0], [NAN])
            ),
        ],
    )
    for _wrong in ("many", 3.0, [], [[1.0]], [None]):
        refused(_draw, f"levels is {_wrong!r}; it must be an int", TypeError, BEALE, levels=_wrong)
    refused(_draw, "points is 2.0; it must be an int from 2 to 2000", TypeError, BEALE, points=2.0)
    for _wrong in (3.0, np.ones(2), np.ones((4, 3)), np.ones((0, 2))):
        _words = f"trajectories['adam'] is an array of shape {np.shape(_wrong)}; allowed: (steps, 2) ... plot.slice"
        refused(_draw, _words, ValueError, BEALE, {"adam": _wrong})
    for _wrong in ("way", [[1.0, "a"]], [[1.0], [1.0, 2.0]], None):
        _words = (
            f"trajectories['adam'] is a {type(_wrong).__name__}; it must be an array of shape (steps, 2) ... trajectory"
        )
        refused(_draw, _words, TypeError, BEALE, {"adam": _wrong})
_flat, _deep = Figure().add_subplot(), Figure().add_subplot(projection="3d")
_words = "ax has the projection 'rectilinear'; allowed: '3d' ... pyplot.subplots(subplot_kw={\"projection\": \"3d\"})"
refused(plot.surface, _words, ValueError, bowl, ax=_flat, **square(3))
_words = "ax has the projection '3d'; allowed: 'rectilinear' ... figure, ax = pyplot.subplots()."
refused(plot.contour, _words, ValueError, bowl, ax=_deep, **square(3))

# Slices ---------------------------------------------------------------------------------------------------------------

_axis, _way = np.arange(3.0), jnp.zeros((4, 2))
PLANE = landscape.Slice(np.ones((3, 3)), _axis, _axis, landscape.Plane(jnp.zeros(2), (*jnp.eye(2),), ("x", "y")))
LINE = landscape.Slice(_axis, _axis, None, landscape.Plane(jnp.zeros(2), (jnp.ones(2),), ("x",)))
rows(
    plot.slice,
    TypeError,
    [
        *(
            (f"values is a {type(w).__name__}; allowed: the result of gradtx.landscape.slice_1d", w)
            for w in (np.ones(3), None)
        ),
        ("values['a'] is a float", {"a": 1.0}),
        (
            "trajectories is a list; it must be a dict of trajectories by name ... trajectory=",
            PLANE,
            Options(trajectories=[_way]),
        ),
        ("ax is a int; allowed: one matplotlib Axes", PLANE, Options(ax=3)),
    ],
)
rows(
    plot.slice,
    ValueError,
    [
        ("values is empty; allowed: at least one slice", {}),
        ("values['b'] has two dimensions; allowed in a dict: one. Draw it alone", {"a": LINE, "b": PLANE}),
        ("trajectory and trajectories are given; allowed: one of them", PLANE, _way, Options(trajectories={"a": _way})),
        ("values has 1 slices; allowed with trajectories: one. Pass the slice itself", {"a": LINE}, _way),
        ("levels is 3; allowed for a slice of one dimension: None", LINE, Options(levels=3)),
        ("log is True, and the lowest loss is 0 ... Pass log=False", LINE, Options(log=True)),
    ],
)
REFUSALS.append(
    Refusal(
        "a way that does not fit",
        lambda: plot.slice(PLANE, {"w": _way}),
        ValueError,
        "trajectory must be a tree like params",
    )
)
refused(plot.surface, "x and y are given with a slice; allowed: None", ValueError, PLANE, x=(0, 1))
refused(plot.surface, "the slice has one dimension; allowed: two ... plot.slice", ValueError, LINE)
for _name, _wrong in (("elevation", "high"), ("azimuth", True), ("azimuth", NAN)):
    refused(
        plot.surface, f"{_name} is {_wrong!r}; it must be a number, in degrees", TypeError, PLANE, **{_name: _wrong}
    )

# Spectra --------------------------------------------------------------------------------------------------------------

_exact = landscape.SpectralDensity(jnp.asarray(EIGENVALUES)[None], jnp.full((1, 100), 0.01), 100)
rows(
    plot.spectrum,
    ValueError,
    [
        ("density is empty; allowed: at least one spectrum.", {}),
        ("density is an array ... allowed: one dimension", np.eye(2)),
        ("density is empty; allowed: at least one number", []),
        ("1 of the 2 eigenvalues of density are not finite; allowed: finite numbers", [1.0, NAN]),
        (
            "100 of the 100 eigenvalues of density['end'] are not finite",
            {"end": _exact._replace(nodes=_exact.nodes * NAN)},
        ),
        ("points is 1; allowed: 2 to 100000", _exact, Options(points=1)),
        *(
            (f"width is {w!r}; it must be a number above 0, or None", _exact, Options(width=w))
            for w in (0.0, -1.0, INF, NAN, True, "a")
        ),
    ],
)
rows(
    plot.spectrum,
    TypeError,
    [
        ("density['a'] is a dict ... spectral_density", {"a": {"b": 1}}),
        ("density is a str; allowed: the result of ... an array", "hessian"),
        ("density is an array of dtype complex128", [1j]),
        ("ax is a int; allowed: one matplotlib Axes", _exact, Options(ax=1)),
    ],
)

# Races ----------------------------------------------------------------------------------------------------------------

TXS = {"sgd": gradtx.sgd(0.01)}
rows(
    plot.race,
    TypeError,
    [
        ("txs['mine']", TXS | {"mine": lambda g: g}, BEALE),
        ("txs[1]", [gradtx.sgd(0.1), 0.1], BEALE),
        *(
            (
                f"txs is a {type(w).__name__}; it must be a dict of optimizers by name ... Put a single one in a dict",
                w,
                BEALE,
            )
            for w in (gradtx.adam(0.1), "adam", None, optax.sgd(0.1))
        ),
        ("function is a float; it must be a function", TXS, 3.0),
        ("save is a int; it must be a file name", TXS, BEALE, Options(save=3)),
        ("steps is 2.0; it must be an int from 1 to 10000", TXS, BEALE, Options(steps=2.0)),
        ("ax is a int; allowed: one matplotlib Axes", TXS, BEALE, Options(ax=3, steps=2)),
    ],
)
rows(
    plot.race,
    ValueError,
    [
        *(("txs is empty; allowed: at least one", wrong, BEALE) for wrong in ({}, [])),
        ("txs has two optimizers sgd(learning_rate=0.1 ... Name them with a dict", [gradtx.sgd(0.1)] * 2, BEALE),
        ("txs['sgd'] ... sweep of 3 optimizers", {"sgd": jax.vmap(gradtx.sgd)(np.ones(3))}, BEALE),
        ("rosenbrock has dimension 3; allowed: 2", TXS, FUNCTIONS.rosenbrock.replace(dimension=3)),
        ("start is None, and the function has no start; allowed: two", TXS, plain, Options(x=(0, 1))),
        *(
            (f"start is {w!r}; allowed: two finite numbers", TXS, BEALE, Options(start=w))
            for w in (1.0, "ab", [NAN, 0.0], [[1.0, 2.0]])
        ),
        *(
            (f"{name} is {value}; allowed: 1 to {most}", TXS, BEALE, Options({name: value}))
            for name, most in (("steps", 10000), ("frames_per_second", 50), ("trail", 10000))
            for value in (0, most + 1)
        ),
        *(
            (f"save is {w!r}; it must be a name that ends in .gif, .mp4 or .png", TXS, BEALE, Options(save=w))
            for w in ("race.avi", "gif")
        ),
    ],
)


def without_ffmpeg():
    with matplotlib.rc_context({"animation.ffmpeg_path": "no-such-ffmpeg"}):
        plot.race(TXS, BEALE, save="race.mp4")


_words = ("gradtx.plot.race: save is 'race.mp4'", "Install ffmpeg, or save a .gif")
REFUSALS.append(Refusal("an mp4 without ffmpeg", without_ffmpeg, RuntimeError, *_words))
