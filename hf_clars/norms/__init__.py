"""Exact per-sample gradient norms: `PerSampleNorms`, its samplers (one per operator) and their formulas."""

from .measurement import MODES
from .ops import OPERATORS
from .per_sample import PerSampleNorms
from .untracked import check_untracked
from .verification.verdicts import NormsVerification, NormVerdict
from .verification.verify import verify_norms

__all__ = [
    "MODES",
    "OPERATORS",
    "NormVerdict",
    "NormsVerification",
    "PerSampleNorms",
    "check_untracked",
    "verify_norms",
]
