"""The image classification recipe: a YAML file and flags in, a trained timm model, its logs and plots out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from ..configuration import parse
from ..errors import DIVERGED, TrainingFailedError, UserError, one_line
from ..models.timm_models import build_model
from ..runtime.processes import once
from ..safety.files import write_whole
from ..safety.texts import printable
from ..trainer import ClarsTrainer, ClarsTrainingArguments, GradientStatisticsCallback
from ..trainer.callbacks.variance_records import GradientVarianceCallback
from ..trainer.checkpoints import folders
from ..trainer.checkpoints.folder_lock import alone_in
from ..trainer.metrics import accuracies, best_classes
from ..trainer.records.tracking import keep_wandb_offline_without_login, wandb_line
from ..validation import checks
from .arguments import DEFAULTS, RecipeArguments, refuse_unused
from .data import open_data
from .model_card import model_card
from .plots import plot_run
from .preflight import summary

logger = logging.getLogger(__name__)


def run(argv: list[str]) -> dict[str, float]:
    """Train and evaluate as `argv` says (see `parse`); returns the final metrics.

    Raises:
        UserError: anything the user can mend, before a model is built wherever that is possible.
    """
    recipe, args = parse(argv, RecipeArguments, ClarsTrainingArguments, defaults=DEFAULTS)
    os.environ.setdefault("WANDB_PROJECT", "hf_clars")
    if args.process_index:
        transformers_logging.set_verbosity_error()

    refuse_unused(args)
    recipe.check()
    keep_wandb_offline_without_login(args.report_to)
    if recipe.channels_last and (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        raise UserError("channels_last=True does not go with FSDP, which wants contiguous parameters: leave it out")
    if os.environ.get("WANDB_SWEEP_ID") and (own := os.environ.get("WANDB_RUN_ID")):
        args.output_dir = str(Path(str(args.output_dir)) / own)  # an agent starts all its runs with the same one
    wanted, run_dir = str(args.resume_from_checkpoint or ""), Path(str(args.output_dir))
    with alone_in(run_dir) if once(run_dir.is_dir) else nullcontext():  # a mistake shows before data is read
        once(lambda: folders.tidy(run_dir))
        found = once(lambda: folders.find(wanted, run_dir))
    if wanted and not args.process_index:
        print(f"going on from {found}" if found else f"no checkpoint in {args.output_dir}: beginning", flush=True)
    data = open_data(recipe, args)
    recipe = replace(recipe, eval_split=data.eval_split)  # what records, cards and pictures name

    set_seed(args.seed)
    model = build_model(recipe.model_name, data.classes, **recipe.timm_kwargs())
    model.set_preprocessing(recipe.image_size, data.eval_crop)
    checks.writable_folder("output_dir", str(args.output_dir))
    if data.class_names and len(data.class_names) == data.classes:
        model.config.id2label = dict(enumerate(data.class_names))
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    if not args.process_index:
        about = {"model_name": recipe.model_name, "dataset": recipe.dataset, "image_size": recipe.image_size}
        print(summary(args, model, data.stream, **about), flush=True)

    try:
        trainer = ImageTrainer(
            model,
            args,
            train_dataset=data.stream,
            eval_dataset=data.evaluation,
            data_collator=data.train_collator,
            eval_collator=data.eval_collator,
            compute_metrics=accuracies,
            preprocess_logits_for_metrics=best_classes,
            about={k: v for k, v in asdict(recipe).items() if k != "plots"},
        )
    except UserError:
        raise
    except Exception as error:  # of settings: reporters, accelerate and the Hub's client raise whatever they meet
        raise UserError(f"{type(error).__name__}: {one_line(error)}") from error
    _lay_out(trainer, recipe.channels_last)
    if recipe.gradient_variance != "none":
        batches = data.plain_batches(args.per_device_eval_batch_size)
        trainer.add_callback(GradientVarianceCallback(trainer, batches, recipe.gradient_variance))
    if recipe.gradient_statistics_steps:
        trainer.add_callback(GradientStatisticsCallback(every=recipe.gradient_statistics_steps))
    trainer.alone = True
    with alone_in(run_dir), trainer.record.closed_afterwards():
        metrics = _train(trainer, wanted)
        reported = wandb_line() or f"reported to: {', '.join(args.report_to or ()) or 'nothing but the files above'}"
    if trainer.is_world_process_zero():
        _say(recipe, args, metrics, trainer.state.global_step, reported)
    return metrics


def _lay_out(trainer: ImageTrainer, channels_last: bool | None) -> None:
    """Convolutions of half precision want the channels of a pixel adjacent, and so do the kernels of the norms."""
    if trainer.is_fsdp_enabled:  # which wants contiguous parameters
        return
    if trainer.args.device.type == "cuda" if channels_last is None else channels_last:
        trainer.model.to(memory_format=torch.channels_last)  # type: ignore[union-attr,call-arg]


def _train(trainer: ImageTrainer, wanted: str) -> dict[str, float]:
    args = trainer.args
    result = trainer.train(resume_from_checkpoint=wanted)
    if (trouble := trainer.health.divergence()) is not None:
        raise TrainingFailedError(f"{trouble}: {DIVERGED}. Lower learning_rate (γ_scale) or eta")
    metrics = {**result.metrics, **_evaluation(trainer)}
    trainer.results = metrics
    try:
        trainer.create_model_card()
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("all", metrics, combined=False)
    except (OSError, SafetensorError) as error:
        raise TrainingFailedError(
            f"the trained model cannot be written to {args.output_dir}: {' '.join(str(error).split())}. Make room, and "
            "run this again with --resume_from_checkpoint auto: no step is made twice that a checkpoint holds"
        ) from error
    return metrics


def _evaluation(trainer: ImageTrainer) -> dict[str, float]:
    """Of the model that the training left: the one that was made, or one that is made now."""
    state, done = trainer.state, trainer.evaluated
    if done is None or done["step"] != state.global_step:
        return trainer.evaluate()
    loaded = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    if not loaded or state.best_global_step == state.global_step:
        return dict(done["metrics"])
    rows = [row for row in state.log_history if row["step"] == state.best_global_step and "eval_loss" in row]
    return {key: value for key, value in rows[-1].items() if key.startswith("eval_")} if rows else trainer.evaluate()


class ImageTrainer(ClarsTrainer):
    """`ClarsTrainer` with a collator of its own for evaluation (centre crops, not random ones), and its own model card.

    Attributes:
        results: metrics of the trained model, for the card; empty before the end.
    """

    results: Mapping[str, float] = {}

    def __init__(self, *args: Any, eval_collator: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        train_collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, which `push_to_hub` calls before the training; raises `UserError` where it cannot be done."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub's client raises whatever it meets
            raise UserError(f"push_to_hub: {type(error).__name__}: {one_line(error)}") from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """In the place of Trainer's, which `push_to_hub` calls, too: that one does not know η, the mode or B."""
        if self.is_world_process_zero():
            card = model_card(self.args, self.model, self.record.about, self.results, self.state.global_step)
            write_whole(Path(str(self.args.output_dir)) / "README.md", str(card))


def _say(
    recipe: RecipeArguments, args: ClarsTrainingArguments, metrics: dict[str, float], steps: int, reported: str
) -> None:
    folder = Path(os.path.relpath(str(args.output_dir)))
    pictures = "no pictures: matplotlib is not installed" if recipe.plots is None else ""
    if recipe.draws():
        pictures = ", ".join(path.name for path in plot_run(str(args.output_dir)))
    print(
        f"\n{recipe.model_name}: {steps} steps of {args.total_batch_size:,} images, training loss "
        f"{metrics['train_loss']:.3f}, accuracy {metrics.get('eval_accuracy', float('nan')):.1%} on "
        f"{recipe.eval_split} after {metrics['train_runtime']:.0f} s"
    )
    print(f"model, logs and plots: {folder}/" + (f" ({pictures})" if pictures else ""))
    print(printable(reported), flush=True)
