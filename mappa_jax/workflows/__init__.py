"""The teams, by the name that `workflow.name` gives them."""

from mappa_jax.workflows.base import Workflow
from mappa_jax.workflows.mathchat import MATHCHAT
from mappa_jax.workflows.single import SINGLE

WORKFLOWS: dict[str, Workflow] = {w.name: w for w in (MATHCHAT, SINGLE)}
