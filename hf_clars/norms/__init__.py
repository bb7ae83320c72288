"""Exact per-sample gradient norms: `PerSampleNorms`, its samplers (one per operator) and their formulas."""

from .measurement import MODES
from .ops import Operator
from .own_operators import measured_by
from .per_sample import PerSampleNorms
from .samplers.base import Sampler
from .untracked import check_untracked
from .verification.verdicts import NormsVerification, NormVerdict
from .verification.verify import verify_norms

__all__ = [
    "MODES",
    "NormVerdict",
    "NormsVerification",
    "Operator",
    "PerSampleNorms",
    "Sampler",
    "check_untracked",
    "measured_by",
    "verify_norms",
]
