"""CLARS (Eq. 4 + 5), LARS (Eq. 4 + 3), mNAG (Eq. 2), CLARS as the paper's authors released it, and AdaScale."""

from . import sharded
from .adascale import AdaScale
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
    "AdaScale",
    "AuthorsCLARS",
    "LayerwiseOptimizer",
    "check_hyperparameters",
    "is_adapted",
    "parameter_groups",
    "sharded",
]
