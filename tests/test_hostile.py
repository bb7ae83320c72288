"""Data sets of strangers: nothing opened outside of them, nothing run, nothing asked for, whatever they contain."""

import io
import json
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from hf_clars import ClarsTrainer, UserError
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.groups import where
from hf_clars.comparison.pictures import runs_with_layers
from hf_clars.comparison.report import report
from hf_clars.comparison.runs import Question
from hf_clars.comparison.sources import read_sources
from hf_clars.data import ImageCollator, decode_image, eval_transform, open_source
from hf_clars.data.home import Home, home_of_folder
from hf_clars.data.transforms import _torchcodec
from hf_clars.image_classification.plots import plot_run
from hf_clars.safety.links import first_foreign
from hf_clars.trainer.checkpoints.folders import find, newest, what_is_wrong

from .helpers.audit import Seen, watched
from .helpers.hub import NAME, serving
from .helpers.models import Classifier, dataset
from .test_trainer import arguments

OUTSIDE = (200, 100, 50)  # the colour of the picture that nobody may see


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def secret(tmp_path) -> Path:
    """A picture of somebody's, outside of the data set, and what leads there."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.png").write_bytes(picture(OUTSIDE))
    with tarfile.open(folder / "archive.tar", "w") as tar:
        tar.add(folder / "secret.png", "secret.png")
    command = "{{ cycler.__init__.__globals__.os.system('touch " + str(folder / "executed") + "') }}"
    refs = {"version": 1, "templates": {"u": command}, "gen": [], "refs": {"a": "{{u}}"}}
    (folder / "refs.json").write_text(json.dumps(refs))
    return folder / "secret.png"


@pytest.fixture
def ours(tmp_path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    return folder


def picture(colour: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def write_rows(file: Path, images: list[dict | None], labels: list | None = None) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    label = pa.array([0] * len(images) if labels is None else labels)
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": label}), file)


def roads(ours: Path, secret: Path) -> dict[str, str]:
    """Ways to name the secret, or a server, in a row of a data set in `ours`."""
    (ours / "link.png").symlink_to(secret)
    (ours / "folder").symlink_to(secret.parent)
    (ours / "chain.png").symlink_to("link.png")
    os.mkfifo(ours / "pipe.png")
    (ours / "device.png").symlink_to("/dev/zero")
    with (ours / "sparse.png").open("wb") as file:
        file.truncate(2**36)
    outside = secret.parent
    return {
        "absolute": str(secret),
        "upwards": f"../{outside.name}/secret.png",
        "through itself": f"{ours}/../{outside.name}/secret.png",
        "a link": "link.png",
        "an absolute link": str(ours / "link.png"),
        "a linked folder": "folder/secret.png",
        "a link to a link": "chain.png",
        "file://": f"file://{secret}",
        "local://": f"local://{secret}",
        "reference": f"reference://a::file://{outside / 'refs.json'}",
        "reference in our folder": f"reference://a::file://{ours}/refs.json",
        "tar": f"tar://secret.png::file://{outside / 'archive.tar'}",
        "cache": f"simplecache::file://{secret}",
        "http": "http://127.0.0.1:9/a.png",
        "webhdfs": "webhdfs://127.0.0.1:9/a.png",
        "ftp": "ftp://127.0.0.1:9/a.png",
        "data": "data:image/png;base64,AAAA",
        "another repository": "hf://datasets/someone/else/a.png",
        "memory": "memory://a.png",
        "a pipe": "pipe.png",
        "a device": "device.png",
        "a sparse file": "sparse.png",
        "nothing": "",
        "the folder": ".",
        "null": "a\0.png",
        "long": "a" * 5000,
    }


def harmless(seen: Seen, secret: Path) -> None:
    assert seen.opened_in(secret.parent) == []
    assert not [path for path in seen.opened if path in ("/dev/zero", "/etc/passwd")]
    assert (seen.run, seen.asked) == ([], [])
    assert not (secret.parent / "executed").exists()


def train_on(folder: Path) -> dict:
    """All examples of a split in one batch, as a training reads them."""
    chunks = open_source(str(folder), "train").chunks
    examples = [example for number in range(len(chunks.sizes)) for example in chunks.read_patiently(number)]
    return ImageCollator(eval_transform(8), 10)(examples)


def test_a_row_names_no_file_outside_of_the_data_set(ours, secret, caplog) -> None:
    ways = roads(ours, secret)
    (ours / "refs.json").write_bytes((secret.parent / "refs.json").read_bytes())
    good = {"bytes": picture(), "path": None}
    write_rows(ours / "train.parquet", [good, *({"bytes": None, "path": way} for way in ways.values())])
    with watched() as seen:
        batch = train_on(ours)
    harmless(seen, secret)
    assert batch["skipped"].tolist() == [len(ways), 0, 0, 0]
    assert {tuple(pixels[:, 0, 0].tolist()) for pixels in batch["pixel_values"]} == {(1, 2, 3)}
    assert "is outside of the data set" in caplog.text


@pytest.mark.slow
def test_a_row_to_evaluate_on_names_no_file_outside_of_the_data_set(ours, secret) -> None:
    good = {"bytes": picture(), "path": None}
    for name, way in roads(ours, secret).items():
        write_rows(ours / "train.parquet", [good, {"bytes": None, "path": way}])
        with watched() as seen:
            if name in ("a pipe", "a sparse file", "nothing", "the folder", "long", "data"):  # its own, and no image
                table = open_source(str(ours), "train").table()
                batch = ImageCollator(eval_transform(8), 10, training=False)(list(table))
                assert batch["labels"].tolist() == [0, -100], name
            else:
                with pytest.raises(UserError, match="a row names a file that is not its own") as refused:
                    open_source(str(ours), "train").table()
                assert "\n" not in str(refused.value)
        harmless(seen, secret)


def test_its_own_files_are_read(ours, secret) -> None:
    (ours / "images").mkdir()
    (ours / "images" / "a.png").write_bytes(picture((9, 9, 9)))
    (ours / "b.png").symlink_to("images/a.png")
    ways = ["images/a.png", "./b.png", str(ours / "images" / "a.png"), f"{ours}/images/../b.png"]
    write_rows(ours / "train.parquet", [{"bytes": None, "path": way} for way in ways])
    assert train_on(ours)["skipped"].tolist() == [0, 0, 0, 0]
    table = open_source(str(ours), "train").table()
    assert {int(decode_image(row["image"])[0, 0, 0]) for row in table} == {9}


def test_links_are_followed_where_that_is_asked_for(ours, secret) -> None:
    (ours / "train").mkdir()
    (ours / "train" / "cat").mkdir()
    (ours / "train" / "cat" / "a.png").symlink_to(secret)
    (ours / "train" / "dog").symlink_to(secret.parent)
    with watched() as seen, pytest.raises(UserError, match=r"dog is a link that leads out .*: --follow_links true"):
        open_source(str(ours), "train")
    harmless(seen, secret)
    source = open_source(str(ours), "train", follow_links=True)
    images = [source.chunks.read(number)[0]["image"] for number in range(2)]
    assert [decode_image(image)[:, 0, 0].tolist() for image in images] == [[*OUTSIDE]] * 2
    (ours / "train" / "dog").unlink()
    source = open_source(str(ours), "train")
    with watched() as seen:
        with pytest.raises(ValueError, match=r"a\.png' is a link that leads out"):
            decode_image(source.chunks.read(0)[0]["image"])
        with pytest.raises(UserError, match=r"a\.png' is a link that leads out"):
            source.table()
    harmless(seen, secret)


def test_a_folder_that_is_named_through_a_link_is_where_it_leads(ours, tmp_path) -> None:
    (ours / "train" / "cat").mkdir(parents=True)
    (ours / "train" / "cat" / "a.png").write_bytes(picture())
    (tmp_path / "alias").symlink_to(ours)
    assert train_on(tmp_path / "alias")["skipped"].sum() == 0


def test_a_snapshot_in_the_hubs_cache_is_read(tmp_path) -> None:
    cache = tmp_path / "datasets--me--pictures"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_bytes(picture())
    snapshot = cache / "snapshots" / "abc" / "train" / "cat"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../../../blobs/0123")
    assert train_on(cache / "snapshots" / "abc")["skipped"].sum() == 0


CARDS = {
    "absolute": "data_files: {outside}/*.parquet",
    "upwards": "data_files: ../outside/*.parquet",
    "a scheme": "data_files: file://{outside}/train.parquet",
    "a server": "data_files: http://127.0.0.1:9/train.parquet",
    "a chain": "data_files: 'reference://a::file://{outside}/refs.json'",
    "a zip": "data_files: 'zip://*.parquet::{outside}/a.zip'",
    "another repository": "data_files: hf://datasets/someone/else/train.parquet",
    "a list": "data_files: [train.parquet, ../outside/train.parquet]",
    "splits": "data_files: [{{split: train, path: [train.parquet, http://127.0.0.1:9/a.parquet]}}]",
    "a folder": "data_dir: ../outside",
}


@pytest.mark.parametrize("config", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
def test_a_card_names_no_data_files_outside_of_the_data_set(ours, secret, config, file, mark) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    write_rows(secret.parent / "train.parquet", [{"bytes": picture(OUTSIDE), "path": None}])
    text = f"configs:\n- config_name: default\n  {config.format(outside=secret.parent)}\n"
    (ours / file).write_text(mark + (f"---\n{text}---\n# Pictures\n" if file == "README.md" else text))
    with watched() as seen, pytest.raises(UserError, match=f"{file} names data files outside of the data set"):
        open_source(str(ours), "train")
    harmless(seen, secret)


def test_a_card_names_data_files_of_its_own(ours) -> None:
    (ours / "data").mkdir()
    write_rows(ours / "data" / "a.parquet", [{"bytes": picture(), "path": None}] * 3)
    (ours / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'data/*.parquet'}\n---\n"
    )
    assert open_source(str(ours), "train").num_examples == 3


@pytest.mark.parametrize(
    "card",
    [
        "a: &a [b, b]\n" + "".join(f"c{i}: &c{i} [{', '.join([f'*c{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9)),
        "a: " + "[" * 3000 + "]" * 3000,
        "configs: &a [*a]",
        "configs:\n- 5",
        "configs: [[]]",
        "configs:\n- {config_name: default, data_files: {split: 5}}",
        "dataset_info: [7]",
        "a: " + "9" * 5000,
        "dataset_info: {features: [{name: label, dtype: {class_label: {names: {'1_000_000_000_000': a}}}}]}",
        "license: mit\r---\rconfigs: []",
        "configs:\n- {config_name: default, data_files: train.parquet, columns: 5}",
    ],
    ids=lambda card: card[-30:],
)
def test_a_card_that_keeps_its_reader_busy_or_is_damaged_is_one_line(ours, card) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    (ours / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(UserError, match=r"^dataset ") as refused:
        open_source(str(ours), "train")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "name", ["README.md", ".huggingface.yaml", "dataset_infos.json", "train.csv", "metadata.jsonl"]
)
@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_what_is_read_as_a_whole_is_a_file_and_bounded(ours, name, kind) -> None:
    (ours / "train").mkdir()
    if name == "metadata.jsonl":
        (ours / "train" / "1.png").write_bytes(picture())
    elif name != "train.csv":
        write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    if kind == "pipe":
        os.mkfifo(ours / "train" / name if name == "metadata.jsonl" else ours / name)
    else:
        with (ours / "train" / name if name == "metadata.jsonl" else ours / name).open("wb") as file:
            file.truncate(2**36)
    tracemalloc.start()
    with pytest.raises(UserError) as refused:
        open_source(str(ours), "train")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    ["5", '{"info": 5}', '{"info": {"features": 5}}', "[" * 5000, "decimal128(9999999999999999, 5)", "bogus"],
    ids=lambda said: said[:12],
)
def test_columns_that_are_described_wrongly_are_one_line(ours, said) -> None:
    if not said.startswith(("{", "[", "5")):
        label = {"_type": "Value", "dtype": said}
        said = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    table = pq.read_table(ours / "train.parquet").replace_schema_metadata({"huggingface": said})
    pq.write_table(table, ours / "train.parquet")
    with pytest.raises(UserError, match=r"^dataset ") as refused:
        open_source(str(ours), "train")
    assert "\n" not in str(refused.value)


def test_a_script_is_not_run(ours) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    (ours / "ours.py").write_text(f"open({str(ours / 'executed')!r}, 'w')")
    with watched() as seen, pytest.raises(UserError, match=r"scripts are no longer supported, but found ours\.py"):
        open_source(str(ours), "train")
    assert seen.run == []
    assert not (ours / "executed").exists()


@pytest.mark.parametrize("said", [-5, 0, 1, 10**12, "abc", 1.5, None, ".nan"])
def test_a_card_does_not_say_how_many_examples_there_are(ours, said) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}] * 3)
    card = f"---\ndataset_info:\n  splits:\n  - {{name: train, num_examples: {said}}}\n---\n"
    (ours / "README.md").write_text(card)
    source = open_source(str(ours), "train")
    assert (source.num_examples, len(source.table()), sum(source.chunks.sizes)) == (3, 3, 3)


def test_a_row_group_that_would_fill_the_memory_is_one_line(ours) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = 2**24 + 1
    table = pa.table({"image": pa.nulls(rows, kind), "label": pa.nulls(rows, pa.int64())})
    pq.write_table(table, ours / "train.parquet", row_group_size=rows)
    assert (ours / "train.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match=r"row group 0 of .* in 16,777,217 rows; write smaller ones"):
        open_source(str(ours), "train")


def test_names_of_files_are_no_patterns(ours, secret) -> None:
    """`datasets` would have all that match them, also what a link leads to."""
    (ours / "*").mkdir()
    (ours / "other").mkdir()
    write_rows(secret.parent / "train.parquet", [{"bytes": picture(OUTSIDE), "path": None}])
    write_rows(ours / "*" / "train[0].parquet", [{"bytes": picture(), "path": None}])
    write_rows(ours / "other" / "train0.parquet", [{"bytes": picture(OUTSIDE), "path": None}])
    (ours / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: '[*]/*.parquet'}\n---\n")
    with watched() as seen:
        table = open_source(str(ours), "train").table()
    harmless(seen, secret)
    assert [decode_image(row["image"])[0, 0, 0].item() for row in table] == [1]


def test_files_that_describe_the_data_set_are_in_it(ours, secret) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}])
    for name in ("README.md", ".huggingface.yaml", "dataset_infos.json"):
        (ours / name).symlink_to(secret)
        with watched() as seen, pytest.raises(UserError, match=f"{name} is a link that leads out"):
            open_source(str(ours), "train")
        harmless(seen, secret)
        (ours / name).unlink()
    (ours / "dataset_infos.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"dataset_infos\.json is damaged"):
        open_source(str(ours), "train")


def test_data_files_are_in_the_data_set(ours, secret) -> None:
    write_rows(secret.parent / "train.parquet", [{"bytes": picture(OUTSIDE), "path": None}])
    (ours / "train.parquet").symlink_to(secret.parent / "train.parquet")
    with watched() as seen, pytest.raises(UserError, match=r"train\.parquet' is a link that leads out"):
        open_source(str(ours), "train")
    harmless(seen, secret)


def test_rows_of_a_metadata_file_name_their_own_images(ours, secret) -> None:
    (ours / "train").mkdir()
    for i in range(3):
        (ours / "train" / f"{i}.png").write_bytes(picture())
    (ours / "train" / "2.png").unlink()
    (ours / "train" / "2.png").symlink_to(secret)
    lines = [{"file_name": f"{i}.png", "label": i} for i in range(3)]
    (ours / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with watched() as seen, pytest.raises(UserError, match=r"2\.png' is a link that leads out"):
        open_source(str(ours), "train").table()
    harmless(seen, secret)


@pytest.mark.parametrize("kind", ["hdf5", "text"])
def test_kinds_of_files_that_hold_no_images_are_refused(ours, kind) -> None:
    (ours / {"hdf5": "train.h5", "text": "train.txt"}[kind]).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match=f"its files are of the kind '{kind}'"):
        open_source(str(ours), "train")


# --- images --------------------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touch x) pop\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("fast", [True, False], ids=["torchcodec", "Pillow"])
def test_only_formats_of_a_list_are_opened(monkeypatch, fast) -> None:
    _torchcodec()  # which is imported at its first use
    if not fast:
        monkeypatch.setattr("hf_clars.data.transforms._torchcodec", lambda: None)
    Image.init()
    allowed, taken = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"}, set()
    for name in sorted(Image.SAVE):
        file = io.BytesIO()
        mode = {"MSP": "1", "XBM": "1", "PALM": "P"}.get(name, "RGB")
        try:
            Image.new(mode, (8, 8)).save(file, name)
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # this Pillow does not write it
        with watched() as seen:
            try:
                decode_image({"bytes": file.getvalue(), "path": "a.jpg"})
                taken.add(name)
            except UnidentifiedImageError:
                assert name not in allowed
        assert (seen.run, seen.asked, seen.opened) == ([], [], []), name
    assert taken & allowed >= {"JPEG", "PNG", "GIF", "BMP"}
    assert taken <= allowed | {"MPO"}  # several JPEGs in one file
    for data in (POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(28) + POSTSCRIPT):
        with watched() as seen, pytest.raises(OSError, match="cannot identify"):
            decode_image({"bytes": data, "path": "a.jpg"})
        assert (seen.run, seen.asked, seen.opened) == ([], [], [])


def test_whoever_has_no_home_opens_plain_files_only(ours, secret) -> None:
    for name, way in roads(ours, secret).items():
        if "://" in way or "::" in way:
            with watched() as seen, pytest.raises((ValueError, OSError)):
                decode_image({"bytes": None, "path": way})
            if name != "another repository":
                harmless(seen, secret)


def test_the_hubs_own_addresses() -> None:
    home = Home(("/cache",), "me/pictures", "hf://datasets/me/pictures@abc")
    assert home.place("images/a.png") == "hf://datasets/me/pictures@abc/images/a.png"
    for address in ("hf://datasets/me/pictures@abc/a.png", "hf://datasets/me/pictures/b/a.png", "/cache/a.png"):
        assert home.place(address) == address
    for address in (
        "hf://datasets/me/pictures2/a.png", "hf://datasets/me/a.png", "hf://me/pictures/a.png", "../a.png",
        "hf://datasets/me/pictures@abc/../../other/a.png", "hf://buckets/me/pictures/a.png", "/etc/passwd",
        "hf://spaces/me/pictures/a.png", "https://huggingface.co/datasets/me/pictures/a.png",
        "zip://a::hf://datasets/me/pictures/a.zip", "HF://datasets/me/pictures/a.png",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"outside of the data set|no plain path"):
            home.place(address)


@pytest.mark.slow
def test_a_data_set_on_the_hub_sends_nobody_elsewhere(tmp_path) -> None:
    """A server of the attacker's beside the Hub's: nobody connects to it."""
    served, elsewhere = tmp_path / "served", socket.create_server(("127.0.0.1", 0))
    served.mkdir()
    port = elsewhere.getsockname()[1]
    ways = [f"http://127.0.0.1:{port}/a.png", f"webhdfs://127.0.0.1:{port}/a.png", "/etc/passwd", "hf://datasets/a/b/c"]
    rows = [{"bytes": picture(), "path": None}, *({"bytes": None, "path": way} for way in ways)]
    write_rows(served / "train.parquet", rows)
    script = (
        "import sys\nfrom hf_clars import UserError\n"
        "from hf_clars.data import ImageCollator, eval_transform, open_source\n"
        "from tests.helpers.audit import watched\n"
        "with watched() as seen:\n"
        "    try:\n"
        "        chunks = open_source(sys.argv[1], 'train').chunks\n"
        "        print(ImageCollator(eval_transform(8), 10)(list(chunks.read(0)))['skipped'].tolist())\n"
        "        open_source(sys.argv[1], 'train').table()\n"
        "    except UserError as error:\n        print(error)\n"
        f"print([a for a in seen.asked if '{port}' in a], '/etc/passwd' in seen.opened, seen.run)"
    )

    homes = []  # a cache for each run: to this hub all files are of one version

    def said(hub) -> list[str]:
        homes.append(hub)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**clean, "HF_HOME": str(tmp_path / f"home{len(homes)}"), "HF_ENDPOINT": hub.address}
        done = subprocess.run(
            [sys.executable, "-c", script, NAME], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with elsewhere, serving(served) as hub:
        skipped, refused, seen = said(hub)
        assert (skipped, seen) == ("[4, 0, 0, 0]", "[] False []")
        assert refused.startswith(f"dataset '{NAME}': a row names a file that is not its own: 'http://")
        for pattern in (ways[0], f"reference://a::{ways[0]}"):
            card = f"---\nconfigs:\n- {{config_name: default, data_files: '{pattern}'}}\n---\n"
            (served / "README.md").write_text(card)
            refused, seen = said(hub)
            assert "README.md names data files outside of the data set" in refused
            assert seen == "[] False []"


def test_home_is_the_folder_and_not_its_namesake(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="outside"):
        home_of_folder(tmp_path / "a").place(str(tmp_path / "ab" / "x.png"))


# --- tars and labels -------------------------------------------------------------------------------------------------


def write_tar(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for entry, data in members:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def sparse_header(name: str, size: int) -> bytes:
    """Of GNU's old format: one block of a byte in `size` bytes of nothing."""
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[100:108], header[108:116], header[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    header[124:136], header[136:148] = b"00000001000\0", b"00000000000\0"
    header[156:157], header[257:265] = b"S", b"ustar  \0"
    header[386:398], header[398:410] = b"00000000000\0", b"00000001000\0"
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


def header(entry: tarfile.TarInfo, size: int) -> bytes:
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def huge_name(kind: bytes) -> bytes:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type = kind
    return header(entry, 2**36)


BOMBS = {
    "large": (header(tarfile.TarInfo("0.png"), 2**36), "has 68,719,476,736 bytes"),
    "a large label": (header(tarfile.TarInfo("0.cls"), 2**36), "has 68,719,476,736 bytes"),
    "a long name": (huge_name(tarfile.GNUTYPE_LONGNAME), "a header of 68,719,476,736 bytes"),
    "a long header": (huge_name(tarfile.XHDTYPE), "a header of 68,719,476,736 bytes"),
}


@pytest.mark.parametrize(("content", "why"), BOMBS.values(), ids=BOMBS)
def test_a_tar_that_would_fill_the_memory_is_one_line(ours, content, why) -> None:
    good = tarfile.TarInfo("9.png"), picture()
    write_tar(ours / "train-0.tar", good, (tarfile.TarInfo("9.cls"), b"1"))
    with (ours / "train-1.tar").open("wb") as file:
        file.write(content)
        file.truncate(2**37)
    tracemalloc.start()
    with pytest.raises(UserError, match=why) as refused:
        _ = open_source(str(ours), "train").chunks
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26
    assert "\n" not in str(refused.value)


def test_a_sparse_member_of_a_tar_is_an_image_that_cannot_be_used(ours) -> None:
    write_tar(ours / "train-0.tar", (tarfile.TarInfo("9.png"), picture()), (tarfile.TarInfo("9.cls"), b"1"))
    label = io.BytesIO()
    with tarfile.open(fileobj=label, mode="w") as tar:
        entry = tarfile.TarInfo("0.cls")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"2"))
    (ours / "train-1.tar").write_bytes(sparse_header("0.png", 2**36) + label.getvalue())
    tracemalloc.start()
    batch = train_on(ours)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26
    assert (batch["labels"].tolist(), batch["skipped"].tolist()) == ([1, 1], [1, 0, 0, 0])


def test_a_tar_of_headers_of_headers_is_one_line(ours) -> None:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type = tarfile.GNUTYPE_LONGNAME
    (ours / "train.tar").write_bytes((header(entry, 2) + b"a\0" + bytes(510)) * 5000)
    with pytest.raises(UserError, match=r"^dataset ") as refused:
        _ = open_source(str(ours), "train").chunks
    assert "\n" not in str(refused.value)


def test_members_of_a_tar_that_lead_elsewhere_are_no_examples(ours, secret) -> None:
    link, hard, device, up = (tarfile.TarInfo(name) for name in ("1.png", "2.png", "3.png", "../../outside/4.png"))
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../outside/secret.png"
    device.type = tarfile.CHRTYPE
    good = [(tarfile.TarInfo("0.png"), picture()), (tarfile.TarInfo("0.cls"), b"3"), (up, picture())]
    labels = [(tarfile.TarInfo(f"{i}.cls"), b"1") for i in (1, 2, 3)]
    write_tar(ours / "train.tar", *good, (tarfile.TarInfo("../../outside/4.cls"), b"4"), *labels,
              *((entry, b"") for entry in (link, hard, device)))  # fmt: skip
    with watched() as seen:
        source = open_source(str(ours), "train")
        examples = [e for number in range(len(source.chunks.sizes)) for e in source.chunks.read(number)]
        batch = ImageCollator(eval_transform(8), 10)(examples)
    harmless(seen, secret)
    assert batch["labels"].tolist() == [3]
    assert not (secret.parent / "4.png").exists()


@pytest.mark.parametrize("label", ["9" * 5000, "-" + "9" * 5000, "\u0661" * 5000, "\x1b[31m" * 1000, "1e400", "NaN"])
def test_a_label_of_any_length_is_a_short_line(ours, label, caplog) -> None:
    write_rows(ours / "train.parquet", [{"bytes": picture(), "path": None}] * 2, ["1", label])
    assert train_on(ours)["skipped"].tolist() == [0, 0, 1, 0]
    assert max(map(len, caplog.text.splitlines())) < 400
    assert "\x1b" not in caplog.text
    with pytest.raises(UserError, match="label ") as refused:
        open_source(str(ours), "train").check_labels(10)
    assert len(str(refused.value)) < 400


# --- folders of runs, checkpoints -----------------------------------------------------------------------------------


def write_run(folder: Path, accuracy: float = 0.5) -> None:
    folder.mkdir(parents=True)
    log = [{"step": 1, "epoch": 1.0, "loss": 1.0}, {"step": 1, "epoch": 1.0, "eval_accuracy": accuracy}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "max_steps": 1}))
    (folder / "layer_statistics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "layers": {}}) + "\n")


FILES_OF_RUNS = ("trainer_state.json", "layer_statistics.jsonl", "run.json", "config.json", "x.json")


@pytest.mark.parametrize("name", FILES_OF_RUNS)
def test_a_run_is_read_from_its_own_folder(ours, secret, name) -> None:
    (secret.parent / name).write_text('{"place": {}, "log_history": [], "config": {"password": "hunter2"}}')
    write_run(ours / "good")
    write_run(ours / "evil")
    (ours / "evil" / ("trainer_state.json" if name == "x.json" else name)).unlink(missing_ok=True)
    (ours / "evil" / name).symlink_to(secret.parent / name)
    with watched() as seen:
        runs, unreadable = read_sources([str(ours)])
    harmless(seen, secret)
    assert "good" in {run.name for run in runs}
    assert [line for line in unreadable if f"{name} is a link that leads out of the run's folder" in line]


def test_folders_of_runs_are_in_the_folder_that_was_named(ours, secret) -> None:
    write_run(ours / "good")
    write_run(secret.parent / "theirs")
    (ours / "evil").symlink_to(secret.parent / "theirs")
    for place in ("wandb", "good/wandb"):
        (ours / place).mkdir()
        (ours / place / "offline-run-20250101_000000-abc").symlink_to(secret.parent)
    (secret.parent / "run-abc.wandb").write_bytes(b"secret")
    with watched() as seen:
        runs, unreadable = read_sources([str(ours)])
    harmless(seen, secret)
    assert [run.name for run in runs] == ["good"]
    assert len([line for line in unreadable if "leads out of" in line]) >= 2
    runs, _ = read_sources([str(ours / "evil")])  # the user's own word
    assert [run.name for run in runs] == ["theirs"]


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
@pytest.mark.parametrize(
    "name",
    [*FILES_OF_RUNS, "wandb/offline-run-20250101_000000-abc/run-abc.wandb", "events.out.tfevents.1.a"],
)
def test_a_file_of_a_run_is_a_file_and_bounded(ours, name, kind) -> None:
    write_run(ours / "good")
    write_run(ours / "evil")
    evil = ours / "evil" / name
    evil.parent.mkdir(parents=True, exist_ok=True)
    evil.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(evil)
    else:
        with evil.open("wb") as file:
            file.write(b":W&B\xe1\xbe\0" if evil.suffix == ".wandb" else b"")
            file.truncate(2**36)
    tracemalloc.start()
    runs, unreadable = read_sources([str(ours)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**27
    assert "good" in {run.name for run in runs}
    assert all("\n" not in line for line in unreadable)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [1e308, 10**400, math.inf, math.nan, -1e308, 1e-320, [], "x", {"a": {"b": 1}}], ids=str)
def test_numbers_beyond_any_axis_are_read_or_one_line(ours, odd) -> None:
    write_run(ours / "good")
    for number, key in enumerate(("step", "loss", "eval_accuracy", "epoch", "total_batch_size", "gamma")):
        folder = ours / str(number)
        write_run(folder)
        rows = [{"step": 1, "epoch": 1.0, "loss": 1.0, "eval_accuracy": 0.5} | ({} if number > 3 else {key: odd})]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows, "max_steps": 1}))
        (folder / "run.json").write_text(json.dumps({"config": {"total_batch_size": odd if number == 4 else 16384}}))
        layer = {"step": 1, "epoch": 1.0, "layers": {"a": {"gamma": odd if number == 5 else 1.0}}}
        (folder / "layer_statistics.jsonl").write_text(json.dumps(layer) + "\n")
        said = ""
        try:
            plot_run(folder)
        except UserError as error:
            said = str(error)
        assert "\n" not in said
    runs, _ = read_sources([str(ours)])
    question = Question("eval/accuracy", 0.4, "step", False)
    comparison = analyse(where(runs, {}), question, None, [])
    about = {"versions": {}, "command": "", "date": ""}
    assert "<svg" in report(comparison, about, runs_with_layers(comparison))


def test_a_picture_is_not_written_through_a_link(ours, secret) -> None:
    pytest.importorskip("matplotlib")
    write_run(ours / "run")
    (ours / "run" / "layer_statistics.jsonl").unlink()
    (ours / "run" / "curves.png").symlink_to(secret)
    before = secret.read_bytes()
    plot_run(ours / "run")
    assert secret.read_bytes() == before
    (ours / "run" / "trainer_state.json").unlink()
    (ours / "run" / "trainer_state.json").symlink_to(secret)
    with watched() as seen, pytest.raises(UserError, match="leads out of the run's folder"):
        plot_run(ours / "run")
    harmless(seen, secret)


@pytest.mark.parametrize(
    "manifest",
    [
        {"../../outside/secret.png": [1, 1]}, {"{outside}/secret.png": [1, 1]}, {"link": [1, 1]}, {"a": 5}, {"a": [1]},
        [1], 5, "deep",
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_is_read_from_its_own_folder(ours, secret, manifest) -> None:
    checkpoint = ours / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "scheduler.pt").write_bytes(b"")
    files = json.dumps({"files": manifest, "written": 1}).replace("{outside}", str(secret.parent))
    (checkpoint / "manifest.json").write_text("[" * 100_000 if manifest == "deep" else files)
    if manifest == {"link": [1, 1]}:
        (checkpoint / "link").symlink_to(secret)
    with watched() as seen:
        assert what_is_wrong(checkpoint) is not None
        assert newest(ours) is None
    harmless(seen, secret)


class Runs:
    """A pickle of it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    train(run_dir)
    return run_dir / "checkpoint-1"


def train(run_dir: Path, checkpoint: Path | None = None) -> ClarsTrainer:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "total_batch_size": 8}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    torch.manual_seed(0)
    args = arguments(run_dir, **options)
    trainer = ClarsTrainer(Classifier(), args, train_dataset=dataset(16), eval_dataset=dataset(8))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def seal(checkpoint: Path) -> None:
    """A manifest for what is there now, as whoever changed it would write one."""
    files = [f for f in sorted(checkpoint.rglob("*")) if f.is_file() and f.name != "manifest.json"]
    sums = {str(f.relative_to(checkpoint)): (f.stat().st_size, zlib.crc32(f.read_bytes())) for f in files}
    (checkpoint / "manifest.json").write_text(json.dumps({"written": 1, "files": sums}))


def refused(checkpoint: Path, secret: Path, match: str) -> None:
    seal(checkpoint)
    with watched() as seen, pytest.raises(UserError, match=match) as error:
        train(checkpoint.parent, checkpoint)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert seen.opened_in(secret.parent) == []
    assert not (secret.parent / "executed").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "scaler.pt"])
def test_a_file_of_a_checkpoint_that_is_not_what_it_should_be_is_one_line(trained, ours, secret, name) -> None:
    evil = Runs(secret.parent / "executed")
    contents = {
        "pickle": pickle.dumps(evil, 2),
        "torch's": evil,
        "empty": b"",
        "junk": b"\xff" * 200,
        "another": [1, 2],
    }
    for kind, content in contents.items():
        checkpoint = ours / kind / "checkpoint-1"
        shutil.copytree(trained, checkpoint)
        if name == "pytorch_model.bin":
            (checkpoint / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (checkpoint / name).write_bytes(content)
        else:
            torch.save(content, checkpoint / name)
        refused(checkpoint, secret, "cannot be resumed from")


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_files_of_its_checkpoint_alone(trained, ours, index) -> None:
    checkpoint = ours / "checkpoint-1"
    shutil.copytree(trained, checkpoint)
    (checkpoint / "model.safetensors").rename(ours / "w.safetensors")
    for shard in ("../w.safetensors", str(ours / "w.safetensors"), "missing.safetensors", "", None, "manifest.json"):
        (checkpoint / index).write_text(json.dumps({"metadata": {}, "weight_map": {"conv.weight": shard}}))
        seal(checkpoint)
        with pytest.raises(UserError, match=f"its {index} names a file that is none of its own"):
            find(str(checkpoint), ours)
    (checkpoint / index).write_text("[" * 5000)
    seal(checkpoint)
    with pytest.raises(UserError, match=f"its {index} cannot be read"):
        find(str(checkpoint), ours)


ODD = ("x", None, [], {}, -1, 1.5, 10**400)
STATE = ("global_step", "max_steps", "log_history", "best_metric", "best_model_checkpoint", "stateful_callbacks", "new")
KEPT = ("loss", "total_loss", "last_logged", "skipped_examples", "skipped_steps", "evaluated", "settings", "options")


@pytest.mark.slow
@pytest.mark.parametrize("key", [*STATE, *(f"ResumePoint.{key}" for key in KEPT), "ResumePoint._trainer"])
def test_a_state_of_odd_values_is_taken_or_one_line(trained, ours, secret, key) -> None:
    for number, odd in enumerate(ODD):
        checkpoint = ours / str(number) / "checkpoint-1"
        shutil.copytree(trained, checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        kept = state["stateful_callbacks"]["ResumePoint"]["attributes"]
        (kept if "." in key else state)[key.removeprefix("ResumePoint.")] = odd
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        seal(checkpoint)
        said = ""
        try:
            assert train(checkpoint.parent, checkpoint).state.global_step == 2
        except UserError as error:
            said = str(error)
        assert "\n" not in said


def test_the_best_model_is_that_of_its_own_run(trained, ours, secret) -> None:
    checkpoint, theirs = ours / "checkpoint-1", secret.parent / "checkpoint-7"
    shutil.copytree(trained, checkpoint)
    shutil.copytree(trained, theirs)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"best_model_checkpoint": str(theirs), "best_metric": -1e9, "best_global_step": None}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    refused(checkpoint, secret, "checkpoint-7 cannot be used")


@pytest.mark.parametrize("name", ["manifest.json", "trainer_state.json", "optimizer.pt", "model.safetensors"])
def test_no_file_of_a_checkpoint_is_a_link_that_leads_out_of_it(ours, secret, name) -> None:
    checkpoint = ours / "checkpoint-1"
    checkpoint.mkdir()
    for file in ("trainer_state.json", "scheduler.pt"):
        (checkpoint / file).write_text("{}")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(secret)
    with watched() as seen, pytest.raises(UserError, match=f"{name} is a link that leads out of the folder"):
        find(str(checkpoint), ours)
    harmless(seen, secret)


@pytest.mark.parametrize("kind", ["a file", "a folder", "a chain", "a loop", "nothing", "a pipe"])
def test_a_folder_that_is_taken_whole_has_its_own_files_alone(ours, secret, kind) -> None:
    (ours / "train").mkdir()
    (ours / "train" / "a.bin").write_bytes(b"bytes")
    (ours / "train" / "b.bin").symlink_to("a.bin")
    assert first_foreign(ours) is None
    evil = ours / "train" / "evil"
    if kind == "a pipe":
        os.mkfifo(evil)
    else:
        (ours / "hop").symlink_to(secret.parent if kind == "a chain" else ours)
        target = {"a file": secret, "a folder": secret.parent, "a chain": "../hop", "a loop": ours, "nothing": "none"}
        evil.symlink_to(target[kind])
        if kind != "a chain":
            (ours / "hop").unlink()
    with watched() as seen:
        assert first_foreign(ours) is not None
        assert what_is_wrong(ours) == first_foreign(ours)
    harmless(seen, secret)


def test_a_snapshot_in_the_hubs_cache_has_its_own_files(tmp_path) -> None:
    cache = tmp_path / "datasets--me--pictures"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_bytes(b"bytes")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "a.parquet").symlink_to("../../blobs/0123")
    assert first_foreign(cache / "snapshots" / "abc") is None
