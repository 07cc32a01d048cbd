"""Every test of a picture leaves pyplot and its settings as they were."""

import matplotlib
import matplotlib.colors
import pytest
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone():
    pyplot.close("all")  # what other tests of this process have left open
    settings = dict(matplotlib.rcParams)
    yield
    try:
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()  # a warning while drawing is an error
        assert dict(matplotlib.rcParams) == settings
    finally:
        pyplot.close("all")
