"""CLARS (Eq. 4 + 5) and LARS (Eq. 4 + 3)."""

from . import sharded
from .clars import CLARS
from .lars import LARS
from .layerwise import VECTOR_RULES, LayerwiseOptimizer, check_hyperparameters
from .param_groups import parameter_groups

__all__ = [
    "CLARS",
    "LARS",
    "VECTOR_RULES",
    "LayerwiseOptimizer",
    "check_hyperparameters",
    "parameter_groups",
    "sharded",
]
