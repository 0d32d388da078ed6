"""The teams, by the name that `workflow.name` gives them."""

from mappa_jax.config import ConfigError
from mappa_jax.plugins import is_plugin, load_object
from mappa_jax.workflows.base import Workflow
from mappa_jax.workflows.datascience import DATASCIENCE, DATASCIENCE_SINGLE
from mappa_jax.workflows.mathchat import MATHCHAT
from mappa_jax.workflows.single import SINGLE

WORKFLOWS: dict[str, Workflow] = {
    workflow.name: workflow
    for workflow in (MATHCHAT, SINGLE, DATASCIENCE, DATASCIENCE_SINGLE)
}


def find_workflow(name: str) -> Workflow:
    """The workflow that `workflow.name` means: one of ours, or "module:NAME" or
    "folder/file.py:NAME" of one that is not.

    Raises:
      ConfigError: there is none.
    """
    if name in WORKFLOWS:
        return WORKFLOWS[name]
    if not is_plugin(name):
        raise ConfigError(
            f"config.workflow.name: {name!r} is not one of {[*WORKFLOWS]}, nor "
            "module:NAME or folder/file.py:NAME of your own"
        )
    found = load_object(name, "workflow.name")
    if not isinstance(found, Workflow):
        raise ConfigError(
            f"config.workflow.name={name!r} is {type(found).__name__}, not a Workflow "
            "(mappa_jax/workflows/base.py)"
        )
    return found
