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

import gc
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import command_line
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timing import interleaved, ratio
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from hf_clars.data import ImageCollator, SharedBatches, TrainStream, decode_image, open_source, train_transform
from hf_clars.data.transforms import FORMATS
from hf_clars.validation.checks import positive

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


def decoders(size: int) -> dict[str, Callable[[bytes], torch.Tensor]]:
    """From JPEG bytes to the crop, in one process: decoded by each, cropped by torch; and all of it by Pillow alone."""
    crop = v2.RandomResizedCrop(size, antialias=True)
    pillow_crop = v2.Compose([crop, v2.PILToTensor()])

    def cropped(decode: Callable[..., torch.Tensor], data: bytes) -> torch.Tensor:
        return crop(decode(torch.frombuffer(bytearray(data), dtype=torch.uint8)))

    found: dict[str, Callable[[bytes], torch.Tensor]] = {
        "Pillow, cropped by Pillow": lambda data: pillow_crop(pillow_image(data)),
        "Pillow": lambda data: crop(torch.from_numpy(np.array(pillow_image(data))).permute(2, 0, 1)),
        "torchvision.io": partial(cropped, partial(decode_jpeg, mode=ImageReadMode.RGB)),
    }
    if find_spec("torchcodec"):
        from torchcodec.decoders import decode_jpeg as torchcodec_jpeg

        found["torchcodec"] = partial(cropped, torchcodec_jpeg)
    else:
        print("torchcodec is not installed: pip install 'hf_clars[fast]'")
    return found


def rate(decode: Callable[[bytes], torch.Tensor], images: Iterator[bytes], seconds: float) -> float:
    """Images per second."""
    from torch.utils.benchmark import Timer

    timer = Timer("decode(next(images))", globals={"decode": decode, "images": images})
    return 1 / timer.blocked_autorange(min_run_time=seconds).mean


def main() -> None:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--dataset", help="a folder of Parquet files")
    add("--workers", type=count, nargs="+", default=[1, 2])
    add("--rounds", type=count, default=5)
    add("--seconds", type=float, default=4.0, help="of each measurement")
    add("--image_size", type=count, default=224)
    add("--shuffle_buffer", type=count, default=1024)
    add("--images", type=count, default=1000, help="that are made without --dataset")
    add("--json", type=command_line.file, default="input.json")
    options = parser.parse_args()
    positive("--seconds", options.seconds)
    warnings.filterwarnings("ignore", "This DataLoader will create|.*decode_jpeg.*")
    about = command_line.about(options, "pillow", "torchcodec")
    with tempfile.TemporaryDirectory() as folder:
        if options.dataset is None:
            make_photographs(Path(folder), options.images)
        dataset = options.dataset or folder
        chunks, images = open_source(dataset, "train").chunks, []
        for number in range(min(len(chunks.sizes), 12)):
            images += [example["image"] for example in chunks.read(number)][: 1000 - len(images)]
        rows = []
        for workers in options.workers:
            pipeline = Pipeline(dataset, workers, options.image_size, options.shuffle_buffer)
            alone = partial(bare, images, workers, options.image_size, options.seconds)
            both = interleaved({"bare": alone, "pipeline": partial(pipeline.rate, options.seconds)}, options.rounds)
            medians = {name: statistics.median(rates) for name, rates in both.items()}
            rows.append({"workers": workers, **medians, "ratio": ratio(both["pipeline"], both["bare"])})
        endless = itertools.cycle(image["bytes"] for image in images)
        ways = {n: partial(rate, way, endless, options.seconds) for n, way in decoders(options.image_size).items()}
        rates = {name: statistics.median(found) for name, found in interleaved(ways, options.rounds).items()}
    command_line.show(f"images/s, medians of {options.rounds}", rows)
    first = next(iter(rates.values()))
    decoded = [{"": name, "images_per_second": found, "ratio": found / first} for name, found in rates.items()]
    command_line.show("one process, decoded and cropped", decoded)
    command_line.write(options.json, {**about, "pipeline": rows, "decoders": rates})


if __name__ == "__main__":
    command_line.run(main)
