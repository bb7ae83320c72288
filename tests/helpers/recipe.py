"""Runs of the recipe: a tiny configuration, data sets in Parquet, and what a run leaves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from .scripts import ROOT
from .training import assert_equal, log_of, without_times

RECIPES = ROOT / "recipes"
TINY = {
    "model_name": "resnet10t", "model_kwargs": {"channels": [4, 4, 4, 4], "stem_width": 4}, "image_size": 16,
    "augmentation": "flip", "eval_crop": 1.0, "total_batch_size": 32, "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16, "num_train_epochs": 2, "use_cpu": True, "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1, "layer_statistics_steps": 1, "learning_rate": 2.0, "disable_tqdm": True, "plots": False,
    "lr_scheduler_kwargs": {"power": 1.0}, "dataloader_pin_memory": False,
}  # fmt: skip


def config(folder: Path, dataset: Path | str, **changes: Any) -> list[str]:
    """Flags of a run into `folder / "run"`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**TINY, "dataset": str(dataset), "output_dir": str(folder / "run"), **changes}))
    return ["--config", str(file)]


def noise(value: int) -> bytes:
    """A PNG of which `value % 3` can be seen."""
    pixels = np.random.default_rng(value).integers(0, 40, (16, 16, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels + np.uint8(60 * (value % 3))).save(data, "PNG")
    return data.getvalue()


def write_splits(
    folder: Path,
    sizes: dict[str, int],
    labels: Callable[[int], int] = lambda i: i % 3,
    named: bool = True,
    broken: tuple[int, ...] = (),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    label = datasets.ClassLabel(names=["dark", "grey", "light"]) if named else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    for split, size in sizes.items():
        rows = {
            "image": [{"bytes": noise(i)[: 40 if i in broken else None], "path": None} for i in range(size)],
            "label": [labels(i) for i in range(size)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def model_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def result(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict], list[str]]:
    """Weights, everything logged but times, and the layer statistics."""
    run = folder / "run"
    return model_of(run), without_times(log_of(run)), (run / "layer_statistics.jsonl").read_text().splitlines()


def assert_same(a: tuple, b: tuple) -> None:
    assert a[0].keys() == b[0].keys()
    assert_equal((a[0][name] for name in a[0]), (b[0][name] for name in a[0]))
    assert a[1:] == b[1:]


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run" / "all_results.json").read_text())


def newest(folder: Path) -> int:
    return max((int(p.name.partition("-")[2]) for p in (folder / "run").glob("checkpoint-*")), default=0)
