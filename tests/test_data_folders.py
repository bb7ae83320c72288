"""Image folders: many mixed shards, the same labels in every split; and files that are not what they seem."""

import pyarrow as pa
import pytest

from hf_clars import UserError
from hf_clars.data import open_source

from .test_data_sources import write_images, write_parquet


def test_image_folders_are_dealt_into_shards_of_mixed_classes(tmp_path):
    write_images(tmp_path / "train", ant=40, bee=40, cow=40)
    stream = open_source(str(tmp_path), "train").stream()
    assert stream.num_shards == 120
    labels = [example["label"] for example in stream]
    assert len(set(labels[:20])) == 3
    assert labels == [example["label"] for example in stream]


def test_labels_are_those_of_the_training_split(tmp_path):
    write_images(tmp_path / "train", ant=1, bee=1, cow=1)
    write_images(tmp_path / "val", cow=2)
    assert [row["label"] for row in open_source(str(tmp_path), "validation").table()] == [2, 2]
    write_images(tmp_path / "test", dog=1)
    with pytest.raises(UserError, match=r"test/dog is a class that .*train does not have"):
        open_source(str(tmp_path), "test")


def test_more_classes_than_stated(tmp_path):
    write_images(tmp_path / "train", ant=1, bee=1, cow=1)
    with pytest.raises(UserError, match="label 2 of row 2 in split 'train' is outside the 2 classes"):
        open_source(str(tmp_path), "train").check_labels(2)


def test_files_that_cannot_be_read_are_an_error_in_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(UserError, match="cannot be read: Parquet magic bytes not found") as e:
        open_source(str(tmp_path / "a"), "train")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="a file, not a folder"):
        open_source(str(tmp_path / "a" / "train.parquet"), "train")
    write_parquet(tmp_path / "b" / "train.parquet", pa.array(["cat", "dog"]))
    with pytest.raises(UserError, match="label cat of row 0"):
        open_source(str(tmp_path / "b"), "train").check_labels(10)
    with pytest.raises(UserError, match="BuilderConfig 'other' not found"):
        open_source(str(tmp_path / "b"), "train", config="other")
