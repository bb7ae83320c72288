"""The Trainer side: `optim="clars"`, training arguments, the Trainer, and what it logs."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily
from .registration import register

if TYPE_CHECKING:
    from .arguments.training_arguments import ClarsTrainingArguments
    from .callbacks.gradient_statistics import GradientStatisticsCallback
    from .trainer import ClarsTrainer

__all__ = ["ClarsTrainer", "ClarsTrainingArguments", "GradientStatisticsCallback", "register"]

_HOMES = {
    "ClarsTrainer": ".trainer",
    "ClarsTrainingArguments": ".arguments.training_arguments",
    "GradientStatisticsCallback": ".callbacks.gradient_statistics",
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
