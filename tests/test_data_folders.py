"""Image folders: mixed classes, the same labels in every split; and files that are not what they seem."""

import pyarrow as pa
import pytest

from hf_clars import UserError
from hf_clars.data import TrainStream, open_source

from .test_data_sources import write_images, write_parquet


def test_image_folders_are_read_with_all_classes_mixed(tmp_path):
    write_images(tmp_path / "train", ant=40, bee=40, cow=40)
    source = open_source(str(tmp_path), "train")
    train = TrainStream(source.chunks, total_batch_size=120, seed=0, shuffle_buffer=8)
    labels = [train[i]["label"] for i in range(120)]
    assert len(set(labels[:20])) == 3
    assert sorted(labels) == [0] * 40 + [1] * 40 + [2] * 40
    assert "bee" in source.chunks.name(41)


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
