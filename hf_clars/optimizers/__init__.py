"""CLARS (Eq. 4 + 5), LARS (Eq. 4 + 3), mNAG (Eq. 2), and CLARS as the paper's authors released it."""

from . import sharded
from .authors import AuthorsCLARS
from .clars import CLARS
from .group_rules import BIAS_AND_NORM_RULES, check_hyperparameters, is_adapted
from .lars import LARS
from .layerwise import LayerwiseOptimizer
from .nag import NAG
from .param_groups import parameter_groups

__all__ = [
    "BIAS_AND_NORM_RULES",
    "CLARS",
    "LARS",
    "NAG",
    "AuthorsCLARS",
    "LayerwiseOptimizer",
    "check_hyperparameters",
    "is_adapted",
    "parameter_groups",
    "sharded",
]
