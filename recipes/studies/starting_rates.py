"""Which γ_scale to start from: a few rates over small networks of several kinds, batch sizes and both optimizers.

    python recipes/studies/starting_rates.py --out starting_rates.json
    python recipes/studies/starting_rates.py --table starting_rates.json    # Markdown of what was run

Convolutional networks and transformers, from scratch and fine-tuned; images are those bundled with the demo, text is
Python's own manual. A row of the table is one training a rate; the score is accuracy, or bits a byte.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from hf_clars import CLARS, LARS, PerSampleNorms, build_model
from hf_clars.runtime.provenance import commit, hardware

IMAGES = Path(__file__).resolve().parents[1] / "demo" / "fashion_mnist"
RATES = (1.0, 3.2, 10.0, 32.0, 100.0)
MICRO_BATCH = 256
TEXT = "llama"  # the task whose score is bits a byte
LENGTH = 64  # bytes of a piece of text
OLD = 5  # classes that a network to be fine-tuned has learnt before; the others are new to it


@dataclass(frozen=True)
class Task:
    """What is trained: a model from a seed, examples to train on, examples to judge by."""

    make: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    text: bool = False

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1) if self.text else logits, y.flatten())

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Accuracy in percent; bits a byte of text."""
        model.eval()
        x, y = self.test
        if self.text:
            return float(self.loss(model, x, y)) / math.log(2)
        return 100 * float((torch.cat([model(part).logits for part in x.split(500)]).argmax(-1) == y).float().mean())


def trained(task: Task, optim: str, rate: float, batch: int, epochs: int, seed: int) -> float:
    """The score after `epochs` of linear decay without warmup; NaN where the loss is not finite any more."""
    torch.manual_seed(seed)
    model = task.make()
    if optim == "clars":
        optimizer: torch.optim.Optimizer = CLARS(model.parameters(), rate, norms=PerSampleNorms(model))
    elif optim == "lars":
        optimizer = LARS(model.parameters(), rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), rate)
    x, y = task.train
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for chosen in order[: len(x) // batch * batch].view(-1, batch):
            for part in chosen.split(MICRO_BATCH):
                loss = task.loss(model, x[part], y[part])
                (loss * len(part) / batch).backward()
            if not loss.isfinite():
                return math.nan
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return task.score(model)


def tasks(seed: int) -> dict[str, Task]:
    images = load_dataset(str(IMAGES)).with_format("numpy")
    parts = {}
    for split in ("train", "test"):
        x = torch.from_numpy(images[split]["image"][:]).unsqueeze(1).float()
        parts[split] = (x / 127.5 - 1, torch.from_numpy(images[split]["label"][:]))
    text = torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8).long()
    pieces = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    texts = {"train": (pieces[:6144], pieces[:6144, 1:]), "test": (pieces[-256:], pieces[-256:, 1:])}

    def of_classes(new: bool) -> dict[str, tuple[Tensor, Tensor]]:
        kept = {split: (y >= OLD) == new for split, (_, y) in parts.items()}
        return {split: (x[kept[split]], y[kept[split]] - OLD * new) for split, (x, y) in parts.items()}

    found = {}
    for name, make in (("resnet8", _resnet), ("vit", _vit)):
        found[name] = Task(make, **parts)
        found[f"{name}, fine-tuned"] = Task(_learnt(Task(make, **of_classes(False)), seed), **of_classes(True))
    found[TEXT] = Task(_llama, **texts, text=True)
    return found


def _learnt(old: Task, seed: int) -> Callable[[], nn.Module]:
    """The network that has learnt the old classes, with a new output layer."""
    kept: list[nn.Module] = []

    def make() -> nn.Module:
        if not kept:
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            model = old.make()
            _adamw(old, model)
            kept.append(model)
            torch.set_rng_state(state)
        model = copy.deepcopy(kept[0])
        next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)).reset_parameters()
        return model

    return make


def _adamw(task: Task, model: nn.Module, epochs: int = 4) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    x, y = task.train
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(MICRO_BATCH):
            task.loss(model, x[part], y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()


def _resnet() -> nn.Module:
    return build_model("resnet8_cifar", num_classes=10, in_chans=1, width=8)


def _vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            image_size=28, patch_size=7, num_channels=1, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=256, num_labels=10,
        )
    )  # fmt: skip


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each task, optimizer and B, with the best score of each in bold."""
    rates = [str(rate) for rate in RATES]
    lines = [["", "optimizer", "B", *rates], ["---"] * (3 + len(rates))]
    for row in rows:
        scores = {rate: score for rate, score in row["scores"].items() if math.isfinite(score)}
        is_text = row["task"] == TEXT
        best, digits = (min if is_text else max)(scores.values(), default=math.nan), 2 if is_text else 1
        texts = {
            rate: f"**{score:.{digits}f}**" if score == best else f"{score:.{digits}f}"
            for rate, score in scores.items()
        }
        if row["optim"] == "adamw":  # rates of its own
            cells = [f"{rate}: {text}" for rate, text in texts.items()]
        else:
            cells = [texts.get(rate, "×") for rate in rates]
        name = f"{row['task']}, {'bits a byte' if is_text else '%'}"
        lines.append([name, row["optim"], str(row["B"]), *cells, *[""] * (len(rates) - len(cells))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("starting_rates.json"))
    parser.add_argument("--only", nargs="+", help="names of tasks; all by default")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what was run, and run nothing")
    args = parser.parse_args()
    if args.table:
        return print(table(json.loads(args.table.read_text(encoding="utf-8"))["rows"]))
    every = tasks(args.seed)
    for name in set(args.only or ()) - set(every):
        parser.error(f"--only {name}: there are {', '.join(every)}")
    rows: list[dict[str, Any]] = []
    about = {
        "commit": commit(), "hardware": hardware({"use_cpu": True}, torch.get_num_threads()), "epochs": args.epochs,
        "seed": args.seed, "rows": rows,
    }  # fmt: skip
    for name in args.only or every:
        for optim, batch in (("clars", 256), ("clars", 2048), ("lars", 256), ("lars", 2048), ("adamw", 256)):
            rates = (1e-3, 3e-3) if optim == "adamw" else RATES
            began = time.monotonic()
            scores = [trained(every[name], optim, rate, batch, args.epochs, args.seed) for rate in rates]
            rows.append(
                {"task": name, "optim": optim, "B": batch, "scores": dict(zip(map(str, rates), scores, strict=True))}
            )
            shown = "  ".join(f"{rate:g}: {score:.2f}" for rate, score in zip(rates, scores, strict=True))
            print(f"{name:20} {optim:6} B={batch:<5} {shown}  ({time.monotonic() - began:.0f} s)", flush=True)
            args.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
