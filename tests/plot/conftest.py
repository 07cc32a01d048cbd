"""Every test of a picture leaves pyplot and its settings as they were."""

import matplotlib
import pytest
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone():
    pyplot.close("all")  # what other tests of this process have left open
    settings = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == settings
