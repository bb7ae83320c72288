"""Peak memory and time of optimizer steps by accumulation, of one optimizer or several.

    python recipes/benchmarks/memory.py [--accumulation 2 8 32] [--micro_batch 512] [--model_name resnet50]
    python recipes/benchmarks/memory.py --accumulation 64 --micro_batch 256 --image_size 224 --optims mnag clars

Every setting runs in a process of its own, where `ClarsTrainer` takes steps, of CLARS with exact norms unless told
otherwise, on random uint8 images. All settings see the same number of images, so that what the memory allocator does
over time is the same for all: the one that accumulates most takes `--steps`. On a CPU images are made when they are
asked for; on CUDA the device holds them (as with `--data_on_device`), so that no input is waited for, and its peak is
reported, images included. Times of steps are those that the trainer logs; where there are several, the median leaves
the first one out. Prints one table and writes memory.json.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any

import command_line
import torch
from torchvision.datasets import FakeData
from torchvision.transforms.functional import pil_to_tensor
from transformers import PrinterCallback

from hf_clars import ClarsTrainer, ClarsTrainingArguments, build_model
from hf_clars.data import DecodedImages, ResidentImages

CLASSES = 10


class RandomImages(FakeData):
    """uint8 images made when they are asked for, so that the data set itself weighs nothing."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"pixel_values": pil_to_tensor(image), "labels": label}


def measure(options: argparse.Namespace, optim: str, accumulation: int) -> dict[str, Any]:
    batch, cuda = options.micro_batch * accumulation, options.device.startswith("cuda")
    steps = options.steps * max(options.accumulation) // accumulation
    shape = (3, options.image_size, options.image_size)
    if cuda:
        images = torch.randint(256, (batch, *shape), dtype=torch.uint8, device=options.device)
        labels = torch.randint(CLASSES, (batch,), device=options.device)
        data = ResidentImages(DecodedImages(images, labels), augmentation="none", total_batch_size=batch, seed=0)
    else:
        data = RandomImages(batch * steps, shape, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        args = ClarsTrainingArguments(
            output_dir=folder, total_batch_size=batch, per_device_train_batch_size=options.micro_batch, max_steps=steps,
            learning_rate=1e-3, optim=optim, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
            layer_statistics_steps=int(not cuda), dataloader_pin_memory=False, bf16=cuda, use_cpu=not cuda,
        )  # fmt: skip
        model = build_model(options.model_name, CLASSES)
        trainer = ClarsTrainer(model.to(memory_format=torch.channels_last) if cuda else model, args, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    clock = [0.0, *(row["seconds"] for row in trainer.state.log_history if "loss" in row)]
    steps_took = [end - start for start, end in pairwise(clock)]
    seconds = statistics.median(steps_took[1:] or steps_took)
    return {
        "optim": optim,
        "accumulation": accumulation,
        "total_batch_size": batch,
        "seconds": steps_took,
        "seconds_a_step": seconds,
        "images_per_second": batch / seconds,
        "host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    }


def main() -> None:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--accumulation", type=count, nargs="+", default=[2, 8, 32])
    add("--micro_batch", type=count, default=512)
    add("--steps", type=count, default=1)
    add("--model_name", type=command_line.timm_model, default="resnet50")
    add("--image_size", type=count, default=32)
    add("--optims", nargs="+", default=["clars"])
    parser.add_device()
    add("--json", type=command_line.file, default="memory.json")
    options = parser.parse_args()
    about = command_line.about(options, "timm")
    settings = [(optim, accumulation) for optim in options.optims for accumulation in options.accumulation]
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=alone, max_tasks_per_child=1) as process:
        rows = [process.submit(measure, options, *setting).result() for setting in settings]
    for row in rows:
        row["ratio"] = row["host_peak_mib"] / rows[0]["host_peak_mib"]
    command_line.show(f"{options.model_name}, {options.image_size} px, micro-batch {options.micro_batch}", rows)
    command_line.write(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    command_line.run(main)
