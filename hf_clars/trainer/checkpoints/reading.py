"""What a checkpoint holds may be anything, whoever made it: it is right, or one line says what is not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from transformers import Trainer, TrainerState

from ...errors import UserError, one_line

Steps = Annotated[int, Field(ge=0, lt=2**53)]
_LONGEST = 200  # characters of a message by others


class _Callbacks(BaseModel):
    TrainerControl: dict[str, Any]


class _State(BaseModel):
    """What Trainer reckons with of `trainer_state.json`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True)

    stateful_callbacks: _Callbacks
    global_step: Steps = 0
    max_steps: int = 0
    epoch: float | None = None
    num_train_epochs: float = 0
    train_batch_size: int | None = None
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] | None = None
    best_metric: float | None = None
    best_global_step: Steps | None = None
    best_model_checkpoint: str | None = None


def what_is_wrong_in(state: Any) -> str | None:
    """Why nobody can go on from a `trainer_state.json` that says so; None where one can."""
    try:
        _State.model_validate(state)
    except ValidationError as error:
        return wrong(error)
    unknown = state.keys() - {field.name for field in fields(TrainerState)}
    return f"{min(unknown)!r:.40} is nothing that a state has" if unknown else None


def wrong(error: ValidationError) -> str:
    """The first thing that is not as it should be, in a line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"[:_LONGEST]


def what_is_wrong_with_shards(checkpoint: Path, listed: set[str]) -> str | None:
    """Whether a model in several files has another file than those of the checkpoint: its index may name any."""
    for index in checkpoint.rglob("*.index.json"):
        try:
            shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"its {index.name} cannot be read"
        folder = index.parent.relative_to(checkpoint)
        foreign = sorted(shard for shard in shards if normpath(folder / shard) not in listed)
        if foreign:
            return f"its {index.name} names a file that is none of its own, {foreign[0]!r:.100}"
    return None


@contextmanager
def readable(checkpoint: Any, what: str) -> Iterator[None]:
    """While a part of a checkpoint is read.

    Raises:
        UserError: in place of what torch, safetensors and Trainer raise for content that they did not expect.
    """
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's own words say how to run it
        raise _unreadable(
            checkpoint, what, "it is damaged, or a pickle that would run code, which nothing here does"
        ) from error
    except RuntimeError as error:  # what else they are is not about the file
        if "PytorchStreamReader" not in str(error) and not isinstance(error, RecursionError):
            raise
        raise _unreadable(checkpoint, what, one_line(error)) from error
    except (
        ArithmeticError, AttributeError, EOFError, LookupError, OSError, SafetensorError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise _unreadable(checkpoint, what, one_line(error) or type(error).__name__) from error


def _unreadable(checkpoint: Any, what: str, why: str) -> UserError:
    return UserError(f"{checkpoint} cannot be resumed from: {what} is not what it should be ({why[:_LONGEST]})")


class CheckedReading(Trainer):
    """A mix-in for `Trainer`: the outermost one of those that read checkpoints."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable(resume_from_checkpoint, "its model"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with readable(self.state.best_model_checkpoint, "its model"):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with readable(checkpoint, "scaler.pt, which only training in fp16 has,"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint, "the state of random numbers"):
            super()._load_rng_state(checkpoint)

    def _init_training_state(
        self, max_steps: Any, steps_per_epoch: Any, epochs: Any, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        with readable(resume_from_checkpoint, "trainer_state.json, or the position in its data,"):
            return super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
