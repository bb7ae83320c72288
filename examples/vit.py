"""A Vision Transformer on images, in a plain `transformers.Trainer`: only `optim`, its rate and the clipping change."""

from pathlib import Path

import torch
from datasets import load_dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import hf_clars  # noqa: F401 - makes optim="clars" known

IMAGES = Path(__file__).resolve().parents[1] / "recipes" / "demo" / "fashion_mnist"


def to_tensors(rows: dict) -> dict:
    raw = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in rows["image"]]
    pixels = [image.view(1, 28, 28) / 127.5 - 1 for image in raw]
    return {"pixel_values": pixels, "labels": rows["label"]}


def accuracy(prediction) -> dict:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    torch.manual_seed(0)
    images = load_dataset(str(IMAGES)).with_transform(to_tensors)
    config = ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, num_labels=10,
    )  # fmt: skip
    args = TrainingArguments(
        "outputs/examples/vit",
        optim="clars",
        optim_args="eta=0.01,momentum=0.9",
        learning_rate=10.0,  # γ_scale
        max_grad_norm=0,  # CLARS bounds each layer's step by γ_scale · η of its weight's norm
        lr_scheduler_type="polynomial",
        per_device_train_batch_size=256,
        gradient_accumulation_steps=4,  # B = 1024
        num_train_epochs=5,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(
        ViTForImageClassification(config), args, train_dataset=images["train"], eval_dataset=images["test"],
        compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    print(f"accuracy on the test images: {trainer.evaluate()['eval_accuracy']:.1%}")


if __name__ == "__main__":
    main()
