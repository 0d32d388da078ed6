"""The teams, by the name that `workflow.name` gives them."""

from mappa_jax.workflows.base import Workflow
from mappa_jax.workflows.datascience import DATASCIENCE, DATASCIENCE_SINGLE
from mappa_jax.workflows.mathchat import MATHCHAT
from mappa_jax.workflows.single import SINGLE

WORKFLOWS: dict[str, Workflow] = {
    workflow.name: workflow
    for workflow in (MATHCHAT, SINGLE, DATASCIENCE, DATASCIENCE_SINGLE)
}
