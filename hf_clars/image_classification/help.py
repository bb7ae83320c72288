"""`hf-clars train --help`: what matters most, by topic. No import of torch, so that it is quick."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

from ..command_line import page
from ..trainer.arguments.clars_fields import ClarsFields
from ..validation.schema import setting
from .fields import RecipeFields

COMMAND = "hf-clars train --config FILE|NAME [--KEY VALUE ...]"
_ABOUT = """\
Train an image classifier. Keys of the YAML file and flags have the same names, and flags win. Defaults stand in [].
A NAME is one of `hf-clars recipes`. A relative path for dataset in the file is first looked up beside the file.
--help-all shows these and all options of transformers' TrainingArguments, which are flags and keys as well."""
_EXAMPLES = """\
examples:
  hf-clars train --config resnet50_clars --per_device_train_batch_size 256
  hf-clars train --dataset cifar10 --model_name resnet20_cifar --image_size 32 --total_batch_size 4096 --output_dir out
  accelerate launch -m hf_clars train --config resnet50_clars"""


@dataclass
class Transformers:
    """Of transformers' own options, those that matter most; defaults are theirs."""

    optim_args: str | None = setting(
        None, "Options of the optimizer as key=value,…; of clars the above from eta to decay_in_denominator."
    )
    weight_decay: float = setting(0.0, "λ; biases and norm weights are not decayed by default.")
    per_device_train_batch_size: int = setting(8, "Samples of one forward and backward pass on a device.")
    per_device_eval_batch_size: int = setting(8, "Samples of one pass of the evaluation.")
    num_train_epochs: float = setting(3.0, "Passes over the training images.")
    max_steps: int = setting(-1, "Optimizer steps, in place of epochs; -1 for none.")
    warmup_steps: float = setting(0, "Linear warmup in steps; below 1 it is a share of all.")
    seed: int = setting(42, "Of the weights, the order of the images and the augmentation.")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast); the optimizer stays in float32.")
    torch_compile: bool = setting(False, "Compile the model.")
    dataloader_num_workers: int = setting(0, "Processes that decode images, for each device.")
    output_dir: str | None = setting(None, "Folder of checkpoints, logs, model and pictures; trainer_output.")
    resume_from_checkpoint: str | None = setting(None, "auto: the newest whole checkpoint, or none; or a folder.")
    run_name: str | None = setting(None, "Name of the run in W&B and other trackers.")
    report_to: str = setting("none", "Trackers: none, all, wandb, tensorboard, …")
    logging_steps: float = setting(500, "Log every so many steps.")
    eval_strategy: str = setting("no", "When to evaluate: no, steps (eval_steps) or epoch.")
    save_strategy: str = setting("steps", "When to write a checkpoint: no, steps, epoch or best.")
    save_steps: float = setting(500, "Checkpoint every so many steps.")
    save_total_limit: int | None = setting(None, "Checkpoints to keep; all by default.")
    push_to_hub: bool = setting(False, "Upload the model to the Hub.")


TOPICS = {
    "model and data": [
        "model_name", "model_kwargs", "dataset", "dataset_config", "dataset_revision", "follow_links", "train_split",
        "eval_split", "image_column", "label_column", "num_classes", "train_examples", "eval_examples", "image_size",
        "augmentation", "min_scale", "eval_crop", "shuffle_buffer", "data_on_device", "dataloader_num_workers",
    ],
    "method": [
        "optim", "learning_rate", "base_learning_rate", "base_batch_size", "eta", "momentum", "weight_decay", "mode",
        "norm_samples", "untracked", "bias_and_norm", "decay_in_denominator", "layerwise_epochs", "freeze_fc_epochs",
        "max_grad_norm", "optim_args",
    ],
    "batch and schedule": [
        "total_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size", "last_batch",
        "num_train_epochs", "max_steps", "warmup_epochs", "warmup_start", "warmup_steps", "lr_scheduler_type",
        "lr_scheduler_kwargs", "decay_epochs", "lr_milestones", "lr_decay",
    ],
    "run": [
        "output_dir", "resume_from_checkpoint", "seed", "bf16", "torch_compile", "channels_last", "eval_strategy",
        "save_strategy", "save_steps", "save_total_limit", "max_skipped_share", "max_nonfinite_steps", "push_to_hub",
    ],
    "logs and measurements": [
        "report_to", "run_name", "logging_steps", "logging_nan_inf_filter", "layer_statistics_steps",
        "gradient_variance", "gradient_statistics_steps", "plots",
    ],
}  # fmt: skip


def topics(everything: bool = False) -> dict[str, list[Field[Any]]]:
    """Heading → fields, each of which is a key of the YAML file and a flag.

    Args:
        everything: with the rest of transformers' options, which takes an import of it.
    """
    known = {f.name: f for kind in (RecipeFields, ClarsFields, Transformers) for f in fields(kind)}
    found = {topic: [known[name] for name in names] for topic, names in TOPICS.items()}
    if everything:
        from ..trainer import ClarsTrainingArguments

        rest = [f for f in fields(ClarsTrainingArguments) if f.init and f.name not in known]
        found["the rest of transformers' TrainingArguments"] = rest
    return found


def train_help(everything: bool = False) -> str:
    """The text; `everything` as in `topics`."""
    return page(COMMAND, _ABOUT, topics(everything), _EXAMPLES)
