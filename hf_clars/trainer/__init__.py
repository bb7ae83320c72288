"""The Trainer side: `optim="clars"`, training arguments, the Trainer, and what it logs."""

from .arguments.training_arguments import ClarsTrainingArguments
from .callbacks.gradient_statistics import GradientStatisticsCallback
from .registration import register
from .trainer import ClarsTrainer

__all__ = ["ClarsTrainer", "ClarsTrainingArguments", "GradientStatisticsCallback", "register"]
