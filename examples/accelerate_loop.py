"""A loop of one's own with Accelerate: bfloat16, accumulation, and clipping of what CLARS does not bound.

`accelerate launch examples/accelerate_loop.py` runs it on what `accelerate config` says, several GPUs included.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch import nn
from torch.utils.data import DataLoader

from hf_clars import CLARS, PerSampleNorms, build_model

IMAGES = Path(__file__).resolve().parents[1] / "recipes" / "demo" / "fashion_mnist"
ACCUMULATION = 4  # B = 256 × 4 on one process
EPOCHS = 4


def to_tensors(rows: dict) -> dict:
    pixels = [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 28, 28) for image in rows["image"]
    ]
    return {"pixel_values": pixels, "labels": rows["label"]}


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATION, cpu=True)
    images = load_dataset(str(IMAGES)).with_transform(to_tensors)
    model = build_model("resnet8_cifar", num_classes=10, in_chans=1, width=8)
    norms = PerSampleNorms(model)  # measures from here on
    optimizer = CLARS(model.named_parameters(), lr=10.0, eta=0.01, weight_decay=1e-4, norms=norms)
    loader = DataLoader(images["train"], batch_size=256, shuffle=True, drop_last=True)
    steps = EPOCHS * len(loader) // ACCUMULATION
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=1.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # CLARS bounds a layer's step by γ_scale · η of its weight's norm: clipping has nothing to do there, and would leave
    # a gradient that is not the one which was measured. Biases and norm weights have no such bound.
    unbounded = [p for p in model.parameters() if p.dim() < 2]

    model.train()
    for epoch in range(EPOCHS):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unbounded, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                schedule.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    model.eval()
    right = total = 0
    with torch.no_grad():
        for batch in accelerator.prepare(DataLoader(images["test"], batch_size=500)):
            chosen = model(batch["pixel_values"]).logits.argmax(-1)
            chosen, labels = accelerator.gather_for_metrics((chosen, batch["labels"]))
            right, total = right + int((chosen == labels).sum()), total + len(labels)
    accelerator.print(f"accuracy on the test images: {right / total:.1%}")


if __name__ == "__main__":
    main()
