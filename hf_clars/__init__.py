"""CLARS: large-batch training without warmup, with exact per-sample gradient norms.

Importing this package makes `optim="clars"`, `"lars"`, `"mnag"`, `"adascale"` and `"lamb"` known to
`transformers.Trainer`, and small networks for CIFAR and MNIST to timm. It imports none of these itself: what is used of
it does.
"""

from typing import TYPE_CHECKING

from .errors import Preempted, TrainingFailedError, UserError
from .models import register_networks
from .runtime.after_import import after_import
from .runtime.lazy import lazily
from .runtime.version import __version__
from .trainer.registration import register

if TYPE_CHECKING:
    from . import theory
    from .models.timm_models import TimmForImageClassification, build_model
    from .norms import NormsVerification, PerSampleNorms, verify_norms
    from .optimizers import CLARS, LARS, NAG
    from .statistics.variance import gradient_variance
    from .trainer import ClarsTrainer, ClarsTrainingArguments, GradientStatisticsCallback

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

_ROOMS = ("data", "formulas", "models", "norms", "optimizers", "statistics", "theory")
_HOMES = {
    **{room: f".{room}" for room in _ROOMS},
    **dict.fromkeys(("CLARS", "LARS", "NAG"), ".optimizers"),
    **dict.fromkeys(("ClarsTrainer", "ClarsTrainingArguments", "GradientStatisticsCallback"), ".trainer"),
    **dict.fromkeys(("NormsVerification", "PerSampleNorms", "verify_norms"), ".norms"),
    **dict.fromkeys(("TimmForImageClassification", "build_model"), ".models"),
    "gradient_variance": ".statistics.variance",
}
__getattr__, __dir__ = lazily(__name__, _HOMES)

register()
after_import("timm", register_networks)
