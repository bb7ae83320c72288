"""What the recipe trains on what, and what can be said about these settings before anything is read."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any

from ..data import check_resident_augmentation
from ..data.names import split_and_rows
from ..data.transforms import AUGMENTATIONS
from ..errors import UserError
from ..trainer import ClarsTrainingArguments
from ..trainer.arguments.without_effect import without_effect
from ..trainer.callbacks.variance_records import MODES as VARIANCE_MODES
from ..validation.schema import check, one_of
from .fields import RecipeFields

DEFAULTS = {
    "remove_unused_columns": False,  # the collator needs them
    "logging_first_step": True,
    "ddp_find_unused_parameters": False,  # looking for them walks the graph once more in every step
}

# Settings of transformers that nothing here would use, or that would break what does: name → what to do instead.
_SET = "is not for image classification: leave it out"
_NOT_HERE = {
    "activation_checkpointing": "is nothing that timm's models take here: lower per_device_train_batch_size",
    "auto_find_batch_size": "would change the batch that total_batch_size states: set per_device_train_batch_size",
    "average_tokens_across_devices": _SET,
    "batch_eval_metrics": "is not for accuracies of whole epochs: leave it out",
    "dataloader_in_order": "is not for streams, whose examples come in one order: leave it out",
    "dataloader_drop_last": "is not for streams of steps: last_batch says what becomes of the rest of an epoch",
    "do_predict": "has nothing to predict: leave it out",
    "eval_do_concat_batches": "is not for accuracies of whole epochs: leave it out",
    "ignore_data_skip": "is not for streams, which read nothing twice: leave it out",
    "include_for_metrics": "has no metric to use it: leave it out",
    "include_num_input_tokens_seen": _SET,
    "label_names": "is settled (labels): leave it out",
    "length_column_name": _SET,
    "liger_kernel_config": _SET,
    "neftune_noise_alpha": _SET,
    "parallelism_config": "is not for a model of this size: leave it out",
    "train_sampling_strategy": "is not for streams, whose order is drawn from data_seed: leave it out",
    "use_cache": _SET,
    "use_liger_kernel": _SET,
}
_NEEDS = {  # setting → what has to be set as well
    "hub_model_id": "push_to_hub", "hub_private_repo": "push_to_hub", "hub_always_push": "push_to_hub",
    "hub_revision": "push_to_hub", "hub_strategy": "push_to_hub", "fsdp_config": "fsdp",
    "activation_checkpointing_kwargs": "activation_checkpointing",
    "trackio_space_id": "report_to=trackio", "trackio_bucket_id": "report_to=trackio",
    "trackio_static_space_id": "report_to=trackio", "project": "report_to=trackio",
}  # fmt: skip
_METRICS = ("loss", "accuracy", "top5_accuracy")


def refuse_unused(args: ClarsTrainingArguments) -> None:
    """Raises `UserError` for what image classification would ignore, or fail with while it trains."""
    defaults = {f.name: f.default for f in fields(args)}
    for name, reason in _NOT_HERE.items():
        value = getattr(args, name)
        if value not in (defaults[name], [], "no") and not (value is False and defaults[name] is None):
            raise UserError(f"{name}={value!r} {reason}")
    for name, needed in _NEEDS.items():
        setting, _, word = needed.partition("=")
        there = getattr(args, setting)
        if getattr(args, name) != defaults[name] and not (word in there if word else there):
            raise UserError(f"{name}={getattr(args, name)!r} is for {needed}: state both, or none")
    for name, text in without_effect(args):
        if not name.endswith("_steps"):  # said alone: of a file whose strategy a flag, or a sweep, overrides
            raise UserError(text)
    if args.remove_unused_columns:
        raise UserError("remove_unused_columns=True would take away the images: leave it out")
    if args.dataloader_num_workers == 0:  # where there are workers, they stay
        args.dataloader_persistent_workers = False
    best = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if best not in _METRICS:
        raise UserError(f"metric_for_best_model={args.metric_for_best_model!r} is none of: {', '.join(_METRICS)}")
    if args.prediction_loss_only and best != "loss":
        raise UserError(
            f"metric_for_best_model={args.metric_for_best_model!r} does not go with prediction_loss_only=True"
        )


_TYPES = {
    "augmentation": Annotated[str, one_of(AUGMENTATIONS)],
    "gradient_variance": Annotated[str, one_of(VARIANCE_MODES)],
}


@dataclass
class RecipeArguments(RecipeFields):
    """What is trained on what; how is `ClarsTrainingArguments`' business."""

    def __post_init__(self) -> None:
        check(self, _TYPES)
        self.timm_kwargs()

    def check(self) -> None:
        """Raises `UserError` for what would only show after data were read."""
        if self.plots and not _has_matplotlib():
            raise UserError("plots need matplotlib: pip install matplotlib, or go without by --plots false")
        if self.data_on_device:
            check_resident_augmentation(self.augmentation)
        if self.min_scale != 0.08 and self.augmentation != "random_resized_crop":
            raise UserError(
                f"min_scale={self.min_scale} is for augmentation=random_resized_crop, not {self.augmentation}"
            )
        for name in ("train_split", "eval_split"):
            try:
                split_and_rows(getattr(self, name))
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        if self.data_on_device and self.shuffle_buffer != 8192:
            raise UserError(f"shuffle_buffer={self.shuffle_buffer} is not for data_on_device=True, which shuffles all")
        _check_model(self.model_name, json.dumps(self.timm_kwargs(), default=str))

    def draws(self) -> bool:
        """Whether there will be pictures."""
        return _has_matplotlib() if self.plots is None else self.plots

    def timm_kwargs(self) -> dict[str, Any]:
        """`model_kwargs`, from JSON if need be."""
        given = self.model_kwargs
        kwargs = json_mapping("model_kwargs", given) if isinstance(given, str) else given or {}
        for name in ("name", "model_name", "num_classes"):
            if name in kwargs:
                own = "num_classes" if name == "num_classes" else "model_name"
                raise UserError(f"model_kwargs={kwargs} has {name!r}: state {own} itself, as a setting")
        return kwargs


@cache
def _check_model(name: str, kwargs: str) -> None:
    """Once for all runs of a sweep."""
    from ..models.timm_models import check_model

    check_model(name, json.loads(kwargs))


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def json_mapping(name: str, text: str) -> dict[str, Any]:
    """A setting that is JSON on the command line."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}={text[:100]!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}={text[:100]!r} must be a mapping")
    return values
