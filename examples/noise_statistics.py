"""The gradient noise scale while AdamW trains: how large a batch is worth its images (McCandlish et al. 2018)."""

import json
import math
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_clars import GradientStatisticsCallback

IMAGES = Path(__file__).resolve().parents[1] / "recipes" / "demo" / "fashion_mnist"
OUTPUTS = Path("outputs/examples/noise_statistics")


def to_tensors(rows: dict) -> dict:
    raw = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in rows["image"]]
    pixels = [image.view(1, 28, 28) / 127.5 - 1 for image in raw]
    return {"pixel_values": pixels, "labels": rows["label"]}


def main() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, num_labels=10,
    )  # fmt: skip
    args = TrainingArguments(
        str(OUTPUTS),
        optim="adamw_torch",
        learning_rate=2e-3,
        per_device_train_batch_size=256,
        num_train_epochs=3,
        logging_steps=20,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(
        ViTForImageClassification(config),
        args,
        train_dataset=load_dataset(str(IMAGES), split="train").with_transform(to_tensors),
        callbacks=[GradientStatisticsCallback(every=20)],
    ).train()

    print("step  noise scale, samples   M_k of the layer where it is largest")
    for line in (OUTPUTS / "gradient_statistics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        scale = record["model"].get("gradient_noise_scale", math.nan)  # absent where noise hides the gradient
        factors = {name: layer["gradient_variance_factor"] for name, layer in record["layers"].items()}
        largest = max(factors, key=factors.__getitem__)
        print(f"{record['step']:4}  {scale:20,.0f}   {factors[largest]:,.0f} ({largest})")


if __name__ == "__main__":
    main()
