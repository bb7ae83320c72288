"""The model card of a run: what was trained how, with which results, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..models.timm_models import TimmForImageClassification
from ..safety.secrets import hidden_in
from ..safety.texts import in_markdown
from ..trainer import ClarsTrainingArguments
from ..trainer.records.description import describe

_TASK = "image-classification"
_SETTINGS = {  # of the run → what the card calls them; those without a name of their own, where they are set
    "optim": "optimizer", "mode": "norms (mode)", "eta": "η", "momentum": "momentum β", "weight_decay": "weight decay",
    "total_batch_size": "batch B", "gamma_scale": "γ_scale (learning rate)", "lr_scheduler_type": "schedule",
    "lr_scheduler_kwargs": "", "warmup_epochs": "", "warmup_start": "", "warmup_steps": "", "decay_epochs": "",
    "lr_milestones": "", "layerwise_epochs": "", "freeze_fc_epochs": "", "num_train_epochs": "epochs",
    "augmentation": "", "image_size": "image size", "seed": "",
}  # fmt: skip
_METRICS = {"eval_accuracy": "accuracy", "eval_top5_accuracy": "top-5 accuracy", "eval_loss": "loss"}


def model_card(
    args: ClarsTrainingArguments, model: Any, about: Mapping[str, Any], results: Mapping[str, float], steps: int
) -> ModelCard:
    """The card of a model that was trained for so many steps; `about` are the settings that `args` does not have.

    It names no path: of a data set in a folder it has the folder's name alone.
    """
    config = describe(args, model, about).config
    dataset = str(config["dataset"])
    is_folder = Path(dataset).expanduser().is_dir()
    name = Path(dataset).expanduser().resolve().name if is_folder else hidden_in(dataset)
    split = str(config["eval_split"])
    scores = {metric: results[key] for key, metric in _METRICS.items() if key in results}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["timm", args.optim_name],
        datasets=None if is_folder else [name],
        metrics=["accuracy"],
        model_name=str(config["model_name"]),
        eval_results=[
            EvalResult(_TASK, "imagefolder" if is_folder else name, name, metric, value, dataset_split=split)
            for metric, value in scores.items()
        ]
        or None,
    )
    used = {key: title for key, title in _SETTINGS.items() if config.get(key) or (title and key in config)}
    if args.max_steps > 0:  # which is in their place
        used.pop("num_train_epochs", None)
    settings = {title or key.replace("_", " "): config[key] for key, title in used.items()}
    settings |= {"steps": steps, "crop in evaluation": model.config.pretrained_cfg["crop_pct"]}
    measured = {
        f"{metric} on {split}" + (", %" if "accuracy" in metric else ""): value * (100 if "accuracy" in metric else 1)
        for metric, value in scores.items()
    }
    head = f"{in_markdown(str(config['model_name']))}, trained on {in_markdown(name)}"
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {head}\n\nA timm model, trained by hf_clars with the settings below.\n\n"
        f"{_table('result', measured)}{_table('setting', settings)}## Use\n\n```python\n{_loading(model)}\n```\n"
    )


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {in_markdown(name)} | {_shown(value)} |" for name, value in rows.items()]
    return "\n".join((f"| {title} | |", "|---|---|", *lines)) + "\n\n" if lines else ""


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{in_markdown(str(key))} {_shown(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, int | float) else in_markdown(str(value))


def _loading(model: Any) -> str:
    """How a pipeline gets the model, with the import that it needs where transformers and timm alone cannot."""
    lines = ["from transformers import pipeline", "", 'folder = "."  # this one, or the model\'s name on the Hub']
    package = type(model.timm_model).__module__.partition(".")[0]
    if model.config.pretrained_cfg["input_size"][0] == 1:
        own = TimmForImageClassification.__name__
        lines.insert(0, f"from hf_clars import {own}  # makes images grey: the model's input has one channel")
        lines += [
            f"model = {own}.from_pretrained(folder)",
            f'classify = pipeline("{_TASK}", model=model, image_processor=folder)',
        ]
    else:
        if package != "timm":
            lines.insert(0, f"import {package}  # has the network, which timm lacks")
        lines.append(f'classify = pipeline("{_TASK}", model=folder)')
    return "\n".join((*lines, 'print(classify("image.jpg"))'))
