"""Peak memory of one optimizer step against the number of micro-batches it accumulates.

    python recipes/benchmarks/memory.py [--accumulation 2 8 32] [--micro_batch 512] [--model_name resnet50]

Every setting runs in a process of its own, where `ClarsTrainer` takes steps of CLARS with exact norms on random uint8
images; the last setting is one step of B = 32 × 512 = 16384. All settings see the same number of images, so that what
the memory allocator does over time is the same for all. Prints one table and writes memory.json. On CUDA the device's
peak is reported too.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time

import timm
import torch


class RandomImages(torch.utils.data.Dataset):
    """uint8 images made when they are asked for, so that the data set itself weighs nothing."""

    def __init__(self, size: int, side: int) -> None:
        self.size, self.side = size, side

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self.side, self.side), dtype=torch.uint8, generator=generator)
        return {"pixel_values": image, "labels": index % 10}


def measure(options: argparse.Namespace, accumulation: int) -> dict:
    from hf_clars import ClarsTrainer, ClarsTrainingArguments, build_model

    batch = options.micro_batch * accumulation
    steps = max(options.accumulation) // accumulation
    with tempfile.TemporaryDirectory() as folder:
        args = ClarsTrainingArguments(
            output_dir=folder, total_batch_size=batch, per_device_train_batch_size=options.micro_batch, max_steps=steps,
            learning_rate=0.1,
            optim=options.optim, report_to=[], save_strategy="no", disable_tqdm=True, layer_statistics_steps=1,
            dataloader_pin_memory=False,
        )  # fmt: skip
        model = build_model(options.model_name, 10)
        trainer = ClarsTrainer(model, args, train_dataset=RandomImages(batch * steps, options.image_size))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        trainer.train()
        assert trainer.state.global_step == steps
    return {
        "accumulation": accumulation,
        "total_batch_size": batch,
        "steps": steps,
        "seconds": time.perf_counter() - start,
        "host_before_mib": before / 1024,
        "host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accumulation", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--micro_batch", type=int, default=512)
    parser.add_argument("--model_name", default="resnet50")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--optim", default="clars")
    parser.add_argument("--json", default="memory.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print("RESULT " + json.dumps(measure(options, options.one)))
        return
    if min(*options.accumulation, options.micro_batch, options.image_size) < 1:
        parser.error("--accumulation, --micro_batch and --image_size must be at least 1")
    if not timm.is_model(options.model_name):
        parser.error(f"--model_name {options.model_name} is no timm model")

    rows = []
    print(f"{options.model_name}, {options.image_size} px, micro-batch {options.micro_batch}, {options.optim}")
    print(f"{'micro-batches':>13} {'B':>6} {'host peak MiB':>14} {'ratio':>6} {'device MiB':>11} {'seconds':>8}")
    for accumulation in options.accumulation:
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", str(accumulation)],
            capture_output=True,
            text=True,
            check=False,
        )
        results = [line for line in child.stdout.splitlines() if line.startswith("RESULT ")]
        if not results:
            sys.exit(f"error: {accumulation} micro-batches failed:\n{child.stderr[-2000:]}")
        row = json.loads(results[0].removeprefix("RESULT "))
        rows.append(row)
        ratio = row["host_peak_mib"] / rows[0]["host_peak_mib"]
        device = f"{row['device_peak_mib']:.0f}" if row["device_peak_mib"] else "-"
        print(
            f"{accumulation:>13} {row['total_batch_size']:>6} {row['host_peak_mib']:>14.0f} {ratio:>6.3f} {device:>11} "
            f"{row['seconds']:>8.1f}",
            flush=True,
        )
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    with open(options.json, "w") as file:
        json.dump({"options": vars(options), "machine": machine, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
