"""The bars that a person sees while a run goes on."""

import pytest


@pytest.fixture
def progress(launch):
    from mappa_jax.commands import console

    with console.ConsoleProgress(3) as shown:
        yield shown


def bars(progress):
    return {
        task.description: (task.completed, task.total) for task in progress._bar.tasks
    }


def test_a_phase_takes_the_place_of_the_one_before(progress):
    advance = progress.start(1, "rollout", 2)
    advance()
    assert bars(progress) == {"iteration 1/3 rollout": (1, 2)}
    advance()
    progress.start(1, "judge", 1)
    assert bars(progress) == {"iteration 1/3 judge": (0, 1)}
    progress.start(1, "credit", 1)
    progress.start(1, "update", 1)
    assert bars(progress) == {"iteration 1/3 update": (0, 1)}


def test_a_rollout_that_goes_on_is_shown_beside(progress):
    progress.start(1, "judge", 1)
    advance = progress.start(2, "rollout", 2)
    advance()
    progress.start(1, "update", 1)
    assert bars(progress) == {
        "iteration 2/3 rollout": (1, 2),
        "iteration 1/3 update": (0, 1),
    }
    advance()
    assert bars(progress)["iteration 2/3 rollout"] == (2, 2)
    progress.start(1, "evaluate", 5)
    assert bars(progress) == {"iteration 1/3 evaluate": (0, 5)}
