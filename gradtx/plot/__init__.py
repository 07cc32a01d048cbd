"""Plots of training: arrays in, matplotlib axes out. An optional extra: `pip install 'gradtx[plot]'`.

- `losses` and `compare` show one run and several runs: the loss J over the updates, and its average.
- `sensitivity` and `heat_map` show a sweep: the loss over one hyperparameter and over two.
- `learning_rate` shows a schedule.
- `contour` and `surface` show a function of two numbers, from above and in three dimensions, with trajectories on it;
  `race` runs several optimizers on such a function and draws a figure or an animation.
- `slice` shows the loss of a network along a line or on a plane; `surface` shows a plane too.
- `spectrum` shows the density of the eigenvalues of the curvature.

Every function takes the axes to draw on, `ax`; None makes a new figure. It returns the axes, for titles, limits and
saving: `ax.figure.savefig("losses.png")`. No figure is shown, no global setting is changed, and no file is written,
except the one that `race` is asked to save. Curves differ in colours that are safe for the colour-blind, and in line
style, marker or brightness, so they also differ in grey.

A sweep is a *table*: a dict of columns (lists or arrays) of equal length, with one row per run, or an object whose
`.table` is such a dict. The columns are "optimizer"; the hyperparameters, with NaN for an optimizer that does not have
one; "seed"; the outcomes, such as "final_loss"; and "diverged". "seed" and "diverged" are optional.

>>> from gradtx import plot
>>> ax = plot.losses([2.3, 1.4, 1.1, 0.7, 0.6, 0.5], steps_per_epoch=3)
>>> ax.get_xlabel(), ax.get_ylabel()
('update', 'J')
"""

from gradtx.plot.curves import compare as compare
from gradtx.plot.curves import learning_rate as learning_rate
from gradtx.plot.curves import losses as losses
from gradtx.plot.races import race as race
from gradtx.plot.spectra import spectrum as spectrum
from gradtx.plot.surfaces import contour as contour
from gradtx.plot.surfaces import slice as slice  # noqa: A004 - called `plot.slice`
from gradtx.plot.surfaces import surface as surface
from gradtx.plot.sweeps import heat_map as heat_map
from gradtx.plot.sweeps import sensitivity as sensitivity
