"""Where examples come from: Parquet, image folders, WebDataset and the Hub, and what goes wrong there."""

import json
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from hf_clars import UserError
from hf_clars.data import TrainStream, decode_image, open_source

from .helpers.data_files import examples_of, png, red, write_images, write_parquet, write_tar
from .helpers.scripts import run_python, without

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def parquet(tmp_path) -> Path:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", pa.array(range(10)))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", pa.array(range(6)))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", pa.array(range(3)))
    return tmp_path


def test_parquet(parquet):
    source = open_source(str(parquet), "train")
    assert (source.num_examples, source.class_names) == (16, None)
    assert source.chunks.sizes.tolist() == [4, 4, 2, 4, 2]  # row groups, not files
    examples = examples_of(source)
    assert [example["label"] for example in examples] == [*range(10), *range(6)]
    assert red(examples[9]) == 9
    assert source.chunks.name(3).startswith("row group 0 of ")
    assert len(open_source(str(parquet), "validation").table()) == 3


def test_parquet_with_names_and_columns_of_its_own(tmp_path):
    write_parquet(tmp_path / "train.parquet", pa.array(range(5)), "picture", "species")
    with pytest.raises(UserError, match="no column that looks like the image: it has picture, species; name it with"):
        open_source(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"label_column='kind': .* has no such column; it has picture, species"):
        open_source(str(tmp_path), "train", image_column="picture", label_column="kind")
    source = open_source(str(tmp_path), "train", image_column="picture", label_column="species")
    assert [set(example) for example in examples_of(source)] == [{"image", "label"}] * 5


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("jpg", "cls")])
def test_usual_column_names_are_found(tmp_path, image, label):
    write_parquet(tmp_path / "train.parquet", pa.array(range(5)), image, label)
    assert [example["label"] for example in examples_of(open_source(str(tmp_path), "train"))] == [*range(5)]


def test_what_datasets_can_load_is_prepared_on_disk(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    lines = []
    for i in range(70):
        (folder / f"{i}.png").write_bytes(png(i))
        lines.append(json.dumps({"file_name": f"{i}.png", "label": i % 3}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path), "train")
    assert source.chunks.sizes.tolist() == [64, 6]
    examples = examples_of(source)
    assert [example["label"] for example in examples] == [i % 3 for i in (red(e) for e in examples)]
    assert sorted(map(red, examples)) == list(range(70))


def test_webdataset(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard:04d}.tar", range(5 * shard, 5 * shard + 5))
    write_tar(tmp_path / "train-0003.tar", range(15, 145))
    source = open_source(str(tmp_path), "train")
    assert source.chunks.sizes.tolist() == [5, 5, 5, 64, 64, 2]
    examples = examples_of(pickle.loads(pickle.dumps(source)))
    assert [example["label"] for example in examples] == [str(number % 2) for number in range(145)]
    assert [red(example) for example in examples] == list(range(145))
    source.check_labels(2)
    with pytest.raises(UserError, match="is outside the 1 classes"):
        source.check_labels(1)


def test_image_folders(tmp_path):
    """All classes mixed; labels are those of the training split."""
    write_images(tmp_path / "train", ant=40, bee=40, cow=40)
    write_images(tmp_path / "val", ant=1, cow=2)
    source = open_source(str(tmp_path), "train")
    assert (source.num_examples, source.class_names) == (120, ["ant", "bee", "cow"])
    labels = {example["image"]["path"].split(os.sep)[-2]: example["label"] for example in examples_of(source)}
    assert labels == {"ant": 0, "bee": 1, "cow": 2}
    train = TrainStream(source.chunks, total_batch_size=120, seed=0, shuffle_buffer=8)
    order = [train[i]["label"] for i in range(120)]
    assert len(set(order[:20])) == 3
    assert sorted(order) == [0] * 40 + [1] * 40 + [2] * 40
    assert "bee" in source.chunks.name(41)
    assert [row["label"] for row in open_source(str(tmp_path), "validation").table()] == [0, 2, 2]
    with pytest.raises(UserError, match="label 2 of row 80 in split 'train' is outside the 2 classes"):
        source.check_labels(2)


@pytest.mark.parametrize("kind", ["class folders", "parquet", "tar", "metadata"])
def test_a_folder_named_from_where_one_works(tmp_path, monkeypatch, kind):
    """It stays the same folder when the program goes elsewhere."""
    folder = tmp_path / "work" / "photos"
    if kind == "class folders":
        write_images(folder / "train", ant=2, bee=2)
    elif kind == "parquet":
        write_parquet(folder / "train.parquet", pa.array([0, 0, 1, 1]))
    elif kind == "tar":
        write_tar(folder / "train-0000.tar", range(4))
    else:
        (folder / "train").mkdir(parents=True)
        rows = [f'{{"file_name": "{n}.png", "label": {n // 2}}}' for n in range(4)]
        for n in range(4):
            (folder / "train" / f"{n}.png").write_bytes(png(n))
        (folder / "train" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    expected = [red(example) for example in examples_of(open_source(str(folder), "train"))]
    assert len(expected) == 4
    (tmp_path / "work" / "deeper").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for start, name in (("work", "photos"), ("work", "./photos"), ("work/deeper", "../photos"), (".", "work/photos")):
        monkeypatch.chdir(tmp_path / start)
        source = open_source(name, "train")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert [red(example) for example in examples_of(source)] == expected, name
        assert [red(example) for example in examples_of(pickle.loads(pickle.dumps(source)))] == expected, name


def test_the_bundled_images(fashion_mnist):
    source = open_source(str(fashion_mnist), "train")
    source.check_labels(10)
    assert (source.num_examples, len(source.class_names), len(source.chunks.sizes)) == (12_000, 10, 6)


def test_real_sets(shared_data):
    for name, examples, classes in (("cifar100", 50_000, 100), ("imagenet_sample", 170, 1000)):
        source = open_source(str(shared_data / name), "train")
        source.check_labels(classes)
        assert (source.num_examples, len(source.class_names)) == (examples, classes)
        assert decode_image(source.chunks.read(0)[0]["image"]).dtype == torch.uint8


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_label_outside_the_classes_is_found_before_training(tmp_path, label):
    write_parquet(tmp_path / "train.parquet", pa.array([0, 9, 3, 4, 5, label, 6], pa.int64()))
    source = open_source(str(tmp_path), "train")
    with pytest.raises(UserError, match=rf"label {label} of row 5 in train.parquet is outside the 10 classes"):
        source.check_labels(10)


def test_what_is_not_there_or_cannot_be_read_is_an_error(parquet, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"no Parquet at all")
    write_parquet(tmp_path / "empty" / "train.parquet", pa.array([], pa.int64()))
    write_parquet(tmp_path / "words" / "train.parquet", pa.array(["cat", "dog"]))
    for name, split, message in (
        (tmp_path / "missing", "train", "no such folder"),
        ("./missing", "train", "no such folder"),
        (parquet, "extra", "has no split 'extra': it has train, test"),
        (tmp_path / "nothing", "train", "the folder is empty"),
        (tmp_path / "empty", "train", "split 'train' is empty"),
        (tmp_path / "damaged", "train", "cannot be read: "),
        (tmp_path / "damaged" / "train.parquet", "train", "a file, not a folder"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_source(str(name), split)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="label cat of row 0"):
        open_source(str(tmp_path / "words"), "train").check_labels(10)
    with pytest.raises(UserError, match="'other'"):
        open_source(str(tmp_path / "words"), "train", config="other")


# --- the Hub -----------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Refuses as huggingface.co does."""

    def do_HEAD(self) -> None:
        status, code = (401, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_what_the_hub_refuses_is_said_in_one_line_without_the_token(hub, tmp_path):
    script = (
        "import sys\nfrom hf_clars import UserError\nfrom hf_clars.data import open_source\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        open_source(name, 'train')\n    except UserError as error:\n        print(error)"
    )
    environment = without("HF_", HF_HOME=str(tmp_path), HF_TOKEN="hf_secret", HF_ENDPOINT=hub)
    run = run_python("-c", script, "someone/gated", "someone/unknown", environment=environment)
    assert run.stdout.splitlines() == [
        "dataset 'someone/gated' is gated: accept its terms on https://huggingface.co/datasets/someone/gated, then run "
        "`hf auth login` (or set HF_TOKEN)",
        "dataset 'someone/unknown' is neither a folder nor a data set on the Hub that you may see",
    ]
    assert "hf_secret" not in run.stdout + run.stderr


def test_the_hub_cannot_be_reached():  # conftest.py forbids it
    with pytest.raises(UserError, match="dataset 'someone/set': the Hub cannot be reached"):
        open_source("someone/set", "train")
