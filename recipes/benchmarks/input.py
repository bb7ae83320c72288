"""How fast the input pipeline is, against what its worker processes can decode and crop at all.

    python recipes/benchmarks/input.py [--dataset FOLDER] [--workers 1 2] [--rounds 5] [--image_size 224]

Two figures for each number of workers W, measured in turns, and their ratio (median of the rounds):

- bare: W processes that decode and crop images which are in their memory, over and over, and hand nothing over;
- pipeline: `TrainStream`, `SharedBatches` and a `DataLoader` with W workers: Parquet read, examples shuffled, decoded,
  cropped, stacked, and handed to the main process, which takes batch after batch.

Then one process with each decoder that is installed, from JPEG bytes to the cropped tensor. Without `--dataset`
(Parquet with the columns `image` and `label`, split `train`) it makes 1,000 JPEGs of the size and weight of ImageNet's:
noise with the spectrum of photographs, 500 × 375 pixels on average. Prints a table and writes input.json.
"""

import argparse
import gc
import io
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_clars.data import ImageCollator, SharedBatches, TrainStream, decode_image, open_source, train_transform
from hf_clars.data.transforms import FORMATS
from hf_clars.errors import UserError

BATCH = 64
REPEATS = 16


def make_photographs(folder: Path, number: int) -> None:
    """Parquet files of 250 rows in row groups of 100, as large sets on the Hub have them."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(number):
        width, height = (int(side * rng.uniform(0.8, 1.2)) for side in rng.permutation([500, 375]))
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
        spectrum = np.fft.fft2(rng.normal(size=(3, height, width))) / frequency**1.1
        picture = np.fft.ifft2(spectrum).real
        picture = 128 + 45 * picture / picture.std()
        file = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(file, "JPEG", quality=92)
        images.append({"bytes": file.getvalue(), "path": None})
    for start in range(0, number, 250):
        part = images[start : start + 250]
        columns = {"image": part, "label": list(range(len(part)))}
        file = folder / f"train-{start:05d}.parquet"
        pq.write_table(pa.table(columns), file, row_group_size=100)
        for copy in range(1, REPEATS):  # an epoch of more than a few batches, whose last ones find no successors
            os.link(file, folder / f"train-{copy * number + start:05d}.parquet")
    print(f"{number} JPEGs of {np.mean([len(image['bytes']) for image in images]) / 1000:.0f} kB on average")


def bare_process(images: list[dict], size: int, seconds: float, barrier, count) -> None:
    gc.disable()  # a forked process has no business with the data loaders of its parent
    torch.set_num_threads(1)
    transform = train_transform(size)
    for image in images[:8]:
        transform(decode_image(image))
    barrier.wait()
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        transform(decode_image(images[done % len(images)]))
        done += 1
    with count.get_lock():
        count.value += done
    os._exit(0)


def bare(images: list[dict], workers: int, size: int, seconds: float) -> float:
    """Images per second of all processes."""
    context = multiprocessing.get_context("fork")
    barrier, count = context.Barrier(workers), context.Value("q", 0)
    processes = [
        context.Process(target=bare_process, args=(images[w::workers], size, seconds, barrier, count))
        for w in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return count.value / seconds


class Pipeline:
    """The recipe's input, started once, and measured again and again."""

    def __init__(self, dataset: str, workers: int, size: int, shuffle_buffer: int) -> None:
        source = open_source(dataset, "train")
        self.stream = TrainStream(source.chunks, total_batch_size=BATCH, seed=0, shuffle_buffer=shuffle_buffer)
        batches = self.stream.batches(BATCH, rank=0, world_size=1, workers=workers)
        collator = ImageCollator(train_transform(size), num_classes=10**6)
        self.shared = SharedBatches(collator, batch_size=BATCH, workers=workers, prefetch_factor=2)
        self.loader = DataLoader(
            self.stream, batch_sampler=batches, collate_fn=self.shared, num_workers=workers, persistent_workers=True
        )
        self.batches = self._endless()
        for _ in range(4 * workers):
            next(self.batches)

    def _endless(self):
        epoch = 0
        while True:
            self.loader.batch_sampler.set_epoch(epoch)
            yield from (self.shared.received(batch, torch.device("cpu")) for batch in self.loader)
            epoch += 1

    def rate(self, seconds: float) -> float:
        """Images per second; the batches that wait from before are taken first."""
        for _ in range(2 * self.loader.num_workers + 1):
            next(self.batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            done += len(next(self.batches)["labels"])
        return done / (time.perf_counter() - start)


def pillow_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB")


def decoders() -> dict[str, Callable[[bytes], torch.Tensor]]:
    def pillow(data: bytes) -> torch.Tensor:
        return torch.from_numpy(np.array(pillow_image(data))).permute(2, 0, 1)

    found: dict[str, Callable[[bytes], torch.Tensor]] = {"Pillow": pillow}
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as torchvision_jpeg

    found["torchvision.io"] = lambda data: torchvision_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
    )
    try:
        from torchcodec.decoders import decode_jpeg as torchcodec_jpeg

        found["torchcodec"] = lambda data: torchcodec_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except ImportError:
        print("torchcodec is not installed: pip install 'hf_clars[fast]'")
    return found


def compare_decoders(images: list[dict], size: int, rounds: int, seconds: float) -> dict[str, float]:
    """Images per second of one process: decoded by each, cropped by torch; and decoded and cropped by Pillow alone."""
    torch.set_num_threads(1)
    crop = v2.RandomResizedCrop(size, antialias=True)
    pillow_crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.PILToTensor()])
    ways: dict[str, Callable[[bytes], torch.Tensor]] = {
        "Pillow, cropped by Pillow": lambda data: pillow_crop(pillow_image(data))
    }
    ways |= {name: (lambda data, decode=decode: crop(decode(data))) for name, decode in decoders().items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, done = time.perf_counter(), 0
            while time.perf_counter() < start + seconds:
                way(images[done % len(images)]["bytes"])
                done += 1
            rates[name].append(done / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a folder of Parquet files")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--shuffle_buffer", type=int, default=1024)
    parser.add_argument("--json", default="input.json")
    options = parser.parse_args()
    if min(*options.workers, options.rounds, options.image_size, options.shuffle_buffer) < 1 or options.seconds <= 0:
        parser.error("--workers, --rounds, --image_size and --shuffle_buffer must be at least 1, --seconds above 0")
    warnings.filterwarnings("ignore", "This DataLoader will create|.*decode_jpeg.*")
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.dataset is None:
                make_photographs(Path(folder), 1000)
            run(options, options.dataset or folder)
    except UserError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace, dataset: str) -> None:
    chunks = open_source(dataset, "train").chunks
    images = []
    for number in range(min(len(chunks.sizes), 12)):
        images += [example["image"] for example in chunks.read(number)][: 1000 - len(images)]
    rows = []
    print(f"{'workers':>7} {'bare images/s':>14} {'pipeline':>9} {'ratio':>6}   (medians of {options.rounds})")
    for workers in options.workers:
        pipeline = Pipeline(dataset, workers, options.image_size, options.shuffle_buffer)
        pairs = []
        for _ in range(options.rounds):
            first = bare(images, workers, options.image_size, options.seconds)
            pairs.append((first, pipeline.rate(options.seconds)))
        ratio = statistics.median(b / a for a, b in pairs)
        row = [statistics.median(values) for values in zip(*pairs, strict=True)]
        rows.append({"workers": workers, "bare": row[0], "pipeline": row[1], "ratio": ratio})
        print(f"{workers:>7} {row[0]:>14.0f} {row[1]:>9.0f} {ratio:>6.3f}", flush=True)
    rates = compare_decoders(images, options.image_size, options.rounds, options.seconds)
    slowest = next(iter(rates.values()))
    print("\none process, decoded and cropped, images/s")
    for name, rate in rates.items():
        print(f"{name:>26} {rate:>7.0f} {rate / slowest:>6.2f} x")
    machine = {"torch": torch.__version__, "processor": platform.processor(), "cores": os.cpu_count()}
    with open(options.json, "w") as file:
        json.dump({"options": vars(options), "machine": machine, "pipeline": rows, "decoders": rates}, file, indent=1)


if __name__ == "__main__":
    main()
