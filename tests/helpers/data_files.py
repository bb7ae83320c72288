"""Data sets of small images as people have them: Parquet, tars, folders; the red of a pixel tells an image's number."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_clars.data import decode_image


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(example: dict) -> int:
    return int(decode_image(example["image"])[0, 0, 0])


def huge() -> bytes:
    """A PNG whose header promises more pixels than anybody wants to decode."""
    data = bytearray(png(0))
    data[16:24] = (20_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4)
    return bytes(data)


def write_parquet(path: Path, labels: pa.Array, image: str = "image", label: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": png(row), "path": None} for row in range(len(labels))],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    pq.write_table(pa.table({image: images, label: labels}), path, row_group_size=4)


def write_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_tar(path: Path, numbers: range, label=lambda number: str(number % 2)) -> None:
    pairs = [((f"{row:04d}.png", png(n)), (f"{row:04d}.cls", label(n).encode())) for row, n in enumerate(numbers)]
    write_members(path, [member for pair in pairs for member in pair])


def write_images(folder: Path, **numbers: int) -> None:
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            (folder / name / f"{i}.png").write_bytes(png(i))


def examples_of(source) -> list[dict]:
    return [example for number in range(len(source.chunks.sizes)) for example in source.chunks.read(number)]
