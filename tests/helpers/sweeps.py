"""Small sweeps, and how to fill them without training."""

import json
import sys
from pathlib import Path

import yaml

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in_training.py"))]  # words to launch with

TINY = {
    "model_name": "resnet8_cifar", "model_kwargs": {"width": 4}, "image_size": 8, "augmentation": "flip",
    "eval_crop": 1.0, "eval_split": "test", "train_examples": 256, "eval_examples": 64, "total_batch_size": 64,
    "per_device_train_batch_size": 64, "num_train_epochs": 2, "learning_rate": 2.0, "use_cpu": True,
    "eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no", "layer_statistics_steps": 0,
}  # fmt: skip
METHODS = {"clars": {"optim": "clars"}, "mgd": {"optim": "sgd"}}


def sweep_file(
    folder: Path, data: Path | str = "x", parameters: dict | None = None, called: str = "tiny", **sections
) -> Path:
    """TINY with 2 methods × 2 seeds; a section that is None is left out."""
    content = {
        "program": "recipes/imagenet_clars.py",
        "method": "grid",
        "settings": {**TINY, "dataset": str(data)},
        "parameters": {"method": {"choices": METHODS}, "seed": {"values": [0, 1]}}
        if parameters is None
        else parameters,
        **sections,
    }
    file = folder / f"{called}.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return file


def command(name: str, file: Path | str, folder: Path, *flags: str) -> list[str]:
    return [name, str(file), "--results", f"{folder}/r", "--work", f"{folder}/w", "--threads", "1", *flags]


def results_in(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "r").rglob("*.json"))]
