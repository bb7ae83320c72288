"""CLARS: large-batch training without warmup, with exact per-sample gradient norms.

Importing this package makes `optim="clars"`, `"lars"`, `"mnag"`, `"adascale"` and `"lamb"` known to
`transformers.Trainer`.
"""

from . import theory
from .errors import Preempted, TrainingFailedError, UserError
from .models.timm_models import TimmForImageClassification, build_model
from .norms import NormsVerification, PerSampleNorms, verify_norms
from .optimizers import CLARS, LARS, NAG
from .runtime.version import __version__
from .statistics.variance import gradient_variance
from .trainer import ClarsTrainer, ClarsTrainingArguments, GradientStatisticsCallback, register

__all__ = [
    "CLARS",
    "LARS",
    "NAG",
    "ClarsTrainer",
    "ClarsTrainingArguments",
    "GradientStatisticsCallback",
    "NormsVerification",
    "PerSampleNorms",
    "Preempted",
    "TimmForImageClassification",
    "TrainingFailedError",
    "UserError",
    "__version__",
    "build_model",
    "gradient_variance",
    "theory",
    "verify_norms",
]

register()
