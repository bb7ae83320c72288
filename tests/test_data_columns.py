"""Data as people have them: labels and images in every type of column, and images whose tags are damaged."""

import io
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags
from PIL import Image as PILImage

from hf_clars import UserError
from hf_clars.data import ImageCollator, decode_image, eval_transform, open_source
from hf_clars.data.batches import IGNORED_LABEL
from hf_clars.data.labels import label_number

from .helpers.data_files import examples_of, png

pytestmark = pytest.mark.usefixtures("datasets_cache")

# --- images whose tags are damaged -------------------------------------------------------------------------------

PIXELS = PILImage.fromarray(np.arange(180, dtype=np.uint8).reshape(6, 10, 3))
SAVE = {"JPEG": {"subsampling": 0, "quality": 100}, "PNG": {}, "WEBP": {"lossless": True}}


def orientation(number: int) -> bytes:
    tags = PILImage.Exif()
    tags[ExifTags.Base.Orientation] = number
    tags[ExifTags.Base.Make] = "somebody"
    tags[ExifTags.Base.XResolution] = 72.0
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ExifVersion: b"0220"}
    return tags.tobytes()


@st.composite
def damaged_tags(draw) -> bytes:
    whole = orientation(draw(st.sampled_from([1, 3, 6])))
    how = draw(st.sampled_from(["anything", "anything behind a head", "cut", "changed"]))
    if how == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if how == "changed":
        for place in draw(st.lists(st.integers(6, len(whole) - 1), min_size=1, max_size=5)):
            whole = whole[:place] + draw(st.binary(min_size=1, max_size=1)) + whole[place + 1 :]
        return whole
    return (b"" if how == "anything" else b"Exif\0\0II*\0\x08\0\0\0") + draw(st.binary(max_size=60))


@pytest.mark.parametrize("file_format", SAVE)
def test_damaged_tags_leave_the_pixels(decoder, file_format):
    def decoded(tags: bytes) -> torch.Tensor:
        file = io.BytesIO()
        PIXELS.save(file, file_format, **SAVE[file_format], **({"exif": tags} if tags else {}))
        return decode_image({"bytes": file.getvalue()})

    plain = decoded(b"")
    turned = [plain.rot90(k, (1, 2)) for k in range(4)]
    upright = [*turned, *(image.flip(-1) for image in turned)]

    @settings(max_examples=100, deadline=None)
    @given(damaged_tags())
    def hold(tags: bytes) -> None:
        image = decoded(tags)
        assert any(image.shape == known.shape and torch.equal(image, known) for known in upright)

    hold()
    assert torch.equal(decoded(orientation(3)), turned[2])


# --- labels and images in every type of column -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "number"),
    [(3, 3), (3.0, 3), (True, 1), (False, 0), ("3", 3), (" 03\n", 3), (b"3", 3), (Decimal("3"), 3), (np.int8(3), 3),
     (np.float32(3), 3), (np.bool_(True), 1), (-1, -1), (2.5, None), (float("nan"), None), (float("inf"), None),
     ("3.0", None), ("cat", None), ("", None), ("9" * 5000, None), (Decimal("2.5"), None), (Decimal("NaN"), None),
     (None, None), ([3], None), ({"a": 1}, None), (b"\xff", None)],
)  # fmt: skip
def test_what_is_a_whole_number(label, number):
    assert label_number(label) == number
    assert type(label_number(label)) in (int, type(None))


@given(st.integers(0, 2**53))
def test_every_way_to_write_a_number_is_the_number(number):
    ways = (number, float(number), str(number), str(number).encode(), Decimal(number), np.int64(number))
    assert [label_number(way) for way in ways] == [number] * len(ways)


LABELS = {
    "int8": pa.array([0, 1, 1, 0], pa.int8()),
    "float": pa.array([0.0, 1.0, 1.0, 0.0], pa.float32()),
    "bool": pa.array([False, True, True, False]),
    "text": pa.array(["0", "1", "1", "0"]),
    "large text": pa.array(["0", "1", "1", "0"], pa.large_string()),
    "decimal": pa.array([0, 1, 1, 0], pa.decimal128(5)),
    "dictionary": pa.array(["0", "1", "1", "0"]).dictionary_encode(),
}
PNGS = [png(row) for row in range(4)]
COLUMNS = {
    "bytes": pa.array(PNGS, pa.binary()),
    "large bytes": pa.array(PNGS, pa.large_binary()),
    "struct without a path": pa.array([{"bytes": data} for data in PNGS]),
    "path first": pa.array([{"path": "a.png", "bytes": data} for data in PNGS]),
}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("column", ["bytes", "struct without a path"])
def test_labels_of_every_type(tmp_path, label, column):
    check_columns(tmp_path, LABELS[label], COLUMNS[column])


@pytest.mark.parametrize("column", COLUMNS)
def test_images_in_every_type_of_column(tmp_path, column):
    check_columns(tmp_path, LABELS["int8"], COLUMNS[column])


def check_columns(folder: Path, labels: pa.Array, images: pa.Array) -> None:
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "train.parquet")
    source = open_source(str(folder), "train")
    source.check_labels(2)
    collator = ImageCollator(eval_transform(8), 2)
    for rows in (examples_of(source), list(source.table())):
        batch = collator(rows)
        assert batch["labels"].tolist() == [0, 1, 1, 0]
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert not batch["skipped"].any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0.0, 1.0, 0.5]), "label 0.5 of row 2 in train.parquet is no whole number: labels are 0 to 1"),
        (pa.array([0.0, float("nan"), 1.0]), "label nan of row 1 in train.parquet is no whole number"),
        (pa.array(["0", "one", "1"]), "label one of row 1 in train.parquet is no whole number"),
        (pa.array(["0", "1", "2"]), "label 2 of row 2 in train.parquet is outside the 2 classes"),
        (pa.array([[0], [1], [0]]), r"label \[0\] of row 0 in train.parquet is no whole number"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused_before_training(tmp_path, labels, message):
    pq.write_table(pa.table({"image": COLUMNS["bytes"][:3], "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message) as error:
        open_source(str(tmp_path), "train").check_labels(2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", [None, {"bytes": None}, {"bytes": None, "path": None}])
def test_null_images_are_skipped_and_named(tmp_path, caplog, image):
    images = pa.array([{"bytes": PNGS[0]}, image, {"bytes": PNGS[2]}])
    pq.write_table(pa.table({"image": images, "label": [0, 1, 1]}), tmp_path / "train.parquet")
    source = open_source(str(tmp_path), "train")
    for rows in (examples_of(source), list(source.table())):
        caplog.clear()
        batch = ImageCollator(eval_transform(8), 2)(rows)
        assert batch["labels"].tolist() == [0, 1, 1]
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 2, 2]  # the next one stands in
        assert batch["skipped"].tolist() == [1, 0, 0, 0]
        (message,) = caplog.messages
        assert message.startswith("skipped: cannot read an image of 0 bytes without a name with label 1: it ")
        evaluated = ImageCollator(eval_transform(8), 2, training=False)(rows)
        assert evaluated["labels"].tolist() == [0, IGNORED_LABEL, 1]


def test_a_column_of_no_encoded_images_is_refused(tmp_path):
    table = pa.table({"image": pa.array([[[0, 1], [2, 3]]]), "label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"column 'image' holds List\(.*, not encoded images"):
        open_source(str(tmp_path), "train")
