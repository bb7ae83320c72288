"""Exact per-sample gradient norms: `PerSampleNorms`, its rules (one per operator) and their formulas."""

from .operators import OPERATORS
from .per_sample import MODES, PerSampleNorms, check_untracked
from .verdicts import NormsVerification, NormVerdict
from .verification import verify_norms

__all__ = [
    "MODES",
    "OPERATORS",
    "NormVerdict",
    "NormsVerification",
    "PerSampleNorms",
    "check_untracked",
    "verify_norms",
]
