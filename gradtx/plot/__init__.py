"""Pictures of training: arrays in, matplotlib axes out. An optional extra: `pip install 'gradtx[plot]'`.

- `losses` and `compare` show one run and several: the loss J over the updates, and its average.
- `sensitivity` and `heat_map` show a sweep: the loss over one hyperparameter and over two.
- `learning_rate` shows a schedule.

Every function takes the axes to draw on, `ax`; without, it makes a figure of its own. It returns the axes, for titles,
limits and saving: `ax.figure.savefig("losses.png")`. Nothing is shown, saved, or set for other pictures. Colours are
told apart by the colour-blind, and by line style or marker in grey.

A sweep is a *table*: a dict of columns of equal length, lists or arrays, one row per run; or an object that has one as
its `.table`. Its columns: "optimizer"; the hyperparameters, NaN where an optimizer has none of that name; "seed"; the
outcomes, such as "final_loss"; and "diverged". Seeds and divergence may be missing.

>>> from gradtx import plot
>>> ax = plot.losses([2.3, 1.4, 1.1, 0.7, 0.6, 0.5], steps_per_epoch=3)
>>> ax.get_xlabel(), ax.get_ylabel()
('update', 'J')
"""

from gradtx.plot.curves import compare as compare
from gradtx.plot.curves import learning_rate as learning_rate
from gradtx.plot.curves import losses as losses
from gradtx.plot.sweeps import heat_map as heat_map
from gradtx.plot.sweeps import sensitivity as sensitivity
