"""The Trainer side: `optim="clars"`, training arguments, the Trainer, and what it logs."""

from .arguments import ClarsTrainingArguments
from .registration import register
from .trainer import ClarsTrainer

__all__ = ["ClarsTrainer", "ClarsTrainingArguments", "register"]
