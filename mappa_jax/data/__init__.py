"""Problems to train on and to be evaluated on."""

from mappa_jax.data.errors import DataError
from mappa_jax.data.loading import Data, load_data, load_evaluation
from mappa_jax.data.overlap import Overlap
from mappa_jax.data.pool import TaskStream

__all__ = [
    "Data",
    "DataError",
    "Overlap",
    "TaskStream",
    "load_data",
    "load_evaluation",
]
