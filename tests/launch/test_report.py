"""launch/report.py: the picture of a recorded run."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb


@pytest.fixture
def draw(launch, tmp_path):
    def run(workdir):
        out = tmp_path / "curves.png"
        return launch("report.py", f"--workdir={workdir}", f"--out={out}"), out

    return run


def test_the_picture_shows_every_curve(draw):
    done, out = draw("docs/arithmetic_run")
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    pixels = matplotlib.image.imread(out)[..., :3]
    assert pixels.shape == (480, 1320, 3)
    left, right = np.split(pixels, 2, axis=1)
    for agent in ("C0", "C1", "C2"):
        assert area(left, agent) > 500, agent
    assert area(right, "0.6") > 500  # success in training
    assert area(right, "C0") > 500  # and on held-out problems


def area(pixels, color):
    """How many pixels have a colour of Matplotlib's."""
    return int((np.abs(pixels - to_rgb(color)) < 0.01).all(-1).sum())


def test_without_metrics_there_is_nothing_to_draw(draw, tmp_path):
    done, out = draw(tmp_path)
    assert done.returncode == 2
    assert "nothing to draw yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
