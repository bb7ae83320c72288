"""One optimizer step of B samples on one device by accumulation: `ClarsTrainer` with exact norms against SGD without.

    python recipes/benchmarks/large_step.py [--total_batch_size 16384] [--micro_batch 256] [--optims mnag clars]

`ClarsTrainer` takes steps on random uint8 images that the device holds (as with `--data_on_device`), so no input is
waited for; micro-batches are normalised, bfloat16 and channels-last. A step is timed from its first micro-batch to the
end of `step()`, on an idle device both times. Every round trains one step with every optimizer, in random order, after
one that is not counted; `ratio` is the median over rounds of a step's seconds by those of the first optimizer in the
same round. Peak memory is the device's in that step, images (`B × 3 × size²` bytes) and both models included.

Prints one table and writes large_step.json.
"""

import argparse
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import command_line
import timm
import torch
from transformers import PrinterCallback, TrainerCallback

from hf_clars import ClarsTrainer, ClarsTrainingArguments, build_model
from hf_clars.data import DecodedImages, ResidentImages, accumulation_steps
from hf_clars.errors import UserError

CLASSES = 1000


class Clock(TrainerCallback):
    """Seconds of each optimizer step, and the device's peak of memory in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peaks.append(torch.cuda.max_memory_allocated())
        self.seconds.append(time.perf_counter() - self.start)


def trainer_of(optim: str, options: argparse.Namespace, images: DecodedImages, folder: str) -> tuple[Any, Clock]:
    args = ClarsTrainingArguments(
        folder, optim=optim, total_batch_size=options.total_batch_size, max_steps=1, learning_rate=1e-3,
        per_device_train_batch_size=options.micro_batch, bf16=options.bf16, use_cpu=options.device == "cpu",
        report_to=[], save_strategy="no", disable_tqdm=True, layer_statistics_steps=0, logging_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    size = {"img_size": options.image_size} if options.model_name.startswith("vit") else {}
    model = build_model(options.model_name, CLASSES, **size).to(memory_format=torch.channels_last)
    data = ResidentImages(images, augmentation="none", total_batch_size=options.total_batch_size, seed=0)
    trainer, clock = ClarsTrainer(model, args, train_dataset=data), Clock(images.labels.device)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    return trainer, clock


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    device, size = torch.device(options.device), options.image_size
    generator = torch.Generator(device).manual_seed(0)
    shape = (options.total_batch_size, 3, size, size)
    images = DecodedImages(
        torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator),
        torch.randint(CLASSES, shape[:1], device=device, generator=generator),
    )
    with tempfile.TemporaryDirectory() as folder:
        made = {optim: trainer_of(optim, options, images, folder) for optim in options.optims}
        for round_number in range(options.rounds + 1):  # the first one compiles, tunes, makes the state
            for trainer, clock in random.sample(list(made.values()), len(made)):
                trainer.train()
                if round_number == 0:
                    clock.seconds.clear()
                    clock.peaks.clear()
    first = made[options.optims[0]][1].seconds
    rows = []
    for optim, (_, clock) in made.items():
        seconds = statistics.median(clock.seconds)
        ratio = statistics.median(a / b for a, b in zip(clock.seconds, first, strict=True))
        peak = max(clock.peaks) / 2**20 if clock.peaks else None
        rows.append(
            {
                "optim": optim,
                "seconds": clock.seconds,
                "median_seconds": seconds,
                "images_per_second": options.total_batch_size / seconds,
                "ratio": ratio,
                "peak_mib": peak,
            }
        )
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total_batch_size", type=int, default=16384)
    parser.add_argument("--micro_batch", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--model_name", default="resnet50")
    parser.add_argument("--optims", nargs="+", default=["mnag", "clars"], help="the first is what others compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", default="large_step.json")
    options = parser.parse_args()
    for flag in ("micro_batch", "image_size", "rounds"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag} {getattr(options, flag)} must be at least 1")
    accumulation_steps(options.total_batch_size, options.micro_batch, 1)
    if not timm.is_model(options.model_name):
        raise UserError(f"--model_name {options.model_name} is no timm model")
    if options.device != "cpu" and not (options.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {options.device} is not available here: choose cpu, or cuda with a GPU")
    command_line.check_file("--json", options.json)
    return options


def main() -> None:
    options = parse()
    random.seed(0)
    logging.getLogger("hf_clars").setLevel(logging.ERROR)  # that a training begins anew, each time
    about = {"command": command_line.command(), **command_line.origin(options.device), "options": vars(options)}
    rows = measure(options)
    micro_batches = options.total_batch_size // options.micro_batch
    print(f"{about['command']}\ncommit {about['commit']}, {about['hardware']['device']}, torch {torch.__version__}")
    print(
        f"\n{options.model_name}, {options.image_size} px, B = {options.total_batch_size} by {micro_batches} "
        f"micro-batches of {options.micro_batch}"
    )
    print(f"{'optimizer':<10} {'s / step':>9} {'images/s':>9} {'ratio':>6} {'peak MiB':>9}")
    for row in rows:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        print(
            f"{row['optim']:<10} {row['median_seconds']:>9.3f} {row['images_per_second']:>9.1f} "
            f"{row['ratio']:>6.3f} {peak:>9}"
        )
    command_line.write(Path(options.json), {**about, "rows": rows})


if __name__ == "__main__":
    command_line.run(main)
