"""Data sets of strangers: nothing opened outside of them, nothing run, nothing asked for, whatever they contain."""

import io
import json
import shutil
import socket
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from hf_clars.data import ImageCollator, decode_image, eval_transform, open_source
from hf_clars.data.home import Home, home_of_folder

from .helpers.audit import Seen, watched
from .helpers.hostile import make_file, one_line, secret_of
from .helpers.hub import NAME, serving
from .helpers.scripts import run_python, without

OUTSIDE = (200, 100, 50)  # the colour of the picture that nobody may see

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def secret(tmp_path) -> Path:
    """A picture of somebody's, outside of the data set, and what leads there."""
    secret = secret_of(tmp_path / "outside", picture(OUTSIDE))
    write_rows(secret.parent / "train.parquet", [{"bytes": picture(OUTSIDE), "path": None}])
    with tarfile.open(secret.parent / "archive.tar", "w") as tar:
        tar.add(secret, "secret.png")
    command = "{{ cycler.__init__.__globals__.os.system('touch " + str(secret.parent / "executed") + "') }}"
    refs = {"version": 1, "templates": {"u": command}, "gen": [], "refs": {"a": "{{u}}"}}
    (secret.parent / "refs.json").write_text(json.dumps(refs))
    return secret


@pytest.fixture
def ours(tmp_path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    return folder


def picture(colour: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def own(number: int = 1) -> list[dict]:
    """Rows that hold their own image."""
    return [{"bytes": picture(), "path": None}] * number


def write_rows(file: Path, images: list[dict | None], labels: list | None = None) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    label = pa.array([0] * len(images) if labels is None else labels)
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": label}), file)


def write_class(folder: Path, name: str = "a.png") -> Path:
    """A class with one image."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(picture())
    return folder


def roads(ours: Path, secret: Path) -> dict[str, str]:
    """Ways to name the secret, or a server, in a row of a data set in `ours`."""
    (ours / "link.png").symlink_to(secret)
    (ours / "folder").symlink_to(secret.parent)
    (ours / "chain.png").symlink_to("link.png")
    make_file(ours / "pipe.png", "pipe")
    (ours / "device.png").symlink_to("/dev/zero")
    make_file(ours / "sparse.png", "sparse")
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


@contextmanager
def harmless(secret: Path) -> Iterator[Seen]:
    """Nothing outside is opened within, nothing is run, nobody is asked for anything."""
    with watched() as seen:
        yield seen
    assert seen.opened_in(secret.parent) == []
    assert not [path for path in seen.opened if path in ("/dev/zero", "/etc/passwd")]
    assert (seen.run, seen.asked) == ([], [])
    assert not (secret.parent / "executed").exists()


@contextmanager
def refused(match: str | None = None, secret: Path | None = None, memory: float = 2**26) -> Iterator[None]:
    """In one line, in bounded memory; harmless, where there is a secret."""
    tracemalloc.start()
    try:
        with one_line(match), harmless(secret) if secret else watched():
            yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


def train_on(folder: Path) -> dict:
    """All examples of a split in one batch, as a training reads them."""
    chunks = open_source(str(folder), "train").chunks
    examples = [example for number in range(len(chunks.sizes)) for example in chunks.read_patiently(number)]
    return ImageCollator(eval_transform(8), 10)(examples)


# --- rows, links, folders --------------------------------------------------------------------------------------------


def test_a_row_names_no_file_outside_of_the_data_set(ours, secret, caplog) -> None:
    ways = roads(ours, secret)
    (ours / "refs.json").write_bytes((secret.parent / "refs.json").read_bytes())
    write_rows(ours / "train.parquet", [*own(), *({"bytes": None, "path": way} for way in ways.values())])
    with harmless(secret):
        batch = train_on(ours)
    assert batch["skipped"].tolist() == [len(ways), 0, 0, 0]
    assert {tuple(pixels[:, 0, 0].tolist()) for pixels in batch["pixel_values"]} == {(1, 2, 3)}
    assert "is outside of the data set" in caplog.text


@pytest.mark.slow
def test_a_row_to_evaluate_on_names_no_file_outside_of_the_data_set(ours, secret) -> None:
    for name, way in roads(ours, secret).items():
        write_rows(ours / "train.parquet", [*own(), {"bytes": None, "path": way}])
        if name in ("a pipe", "a sparse file", "nothing", "the folder", "long", "data"):  # its own, and no image
            with harmless(secret):
                table = open_source(str(ours), "train").table()
                batch = ImageCollator(eval_transform(8), 10, training=False)(list(table))
            assert batch["labels"].tolist() == [0, -100], name
        else:
            with refused("a row names a file that is not its own", secret):
                open_source(str(ours), "train").table()


def test_whoever_has_no_home_opens_plain_files_only(ours, secret) -> None:
    for name, way in roads(ours, secret).items():
        if ("://" in way or "::" in way) and name != "another repository":
            with harmless(secret), pytest.raises((ValueError, OSError)):
                decode_image({"bytes": None, "path": way})


def test_its_own_files_are_read(ours, tmp_path) -> None:
    """Through links inside of it, in a folder that is named through a link, in the Hub's cache."""
    write_class(ours / "images")
    (ours / "b.png").symlink_to("images/a.png")
    ways = ["images/a.png", "./b.png", str(ours / "images" / "a.png"), f"{ours}/images/../b.png"]
    write_rows(ours / "train.parquet", [{"bytes": None, "path": way} for way in ways])
    assert train_on(ours)["skipped"].sum() == 0
    table = open_source(str(ours), "train").table()
    assert {int(decode_image(row["image"])[0, 0, 0]) for row in table} == {1}

    write_class(tmp_path / "folders" / "train" / "cat")
    (tmp_path / "alias").symlink_to(tmp_path / "folders")
    assert train_on(tmp_path / "alias")["skipped"].sum() == 0

    cache = tmp_path / "datasets--me--pictures"
    write_class(cache / "blobs", "0123")
    snapshot = cache / "snapshots" / "abc" / "train" / "cat"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../../../blobs/0123")
    assert train_on(cache / "snapshots" / "abc")["skipped"].sum() == 0


def test_links_are_followed_where_that_is_asked_for(ours, secret) -> None:
    (ours / "train" / "cat").mkdir(parents=True)
    (ours / "train" / "cat" / "a.png").symlink_to(secret)
    (ours / "train" / "dog").symlink_to(secret.parent)
    with refused(r"dog is a link that leads out .*: --follow_links true", secret):
        open_source(str(ours), "train")
    source = open_source(str(ours), "train", follow_links=True)
    images = [source.chunks.read(number)[0]["image"] for number in range(2)]
    assert [decode_image(image)[:, 0, 0].tolist() for image in images] == [[*OUTSIDE]] * 2
    (ours / "train" / "dog").unlink()
    source = open_source(str(ours), "train")
    with harmless(secret), pytest.raises(ValueError, match=r"a\.png' is a link that leads out"):
        decode_image(source.chunks.read(0)[0]["image"])
    with refused(r"a\.png' is a link that leads out", secret):
        source.table()


def test_files_of_the_data_set_are_in_it(ours, secret) -> None:
    """Those that describe it, those with its rows, and images that rows name."""
    write_rows(ours / "train.parquet", own())
    for name in ("README.md", ".huggingface.yaml", "dataset_infos.json"):
        (ours / name).symlink_to(secret)
        with refused(f"{name} is a link that leads out", secret):
            open_source(str(ours), "train")
        (ours / name).unlink()
    (ours / "train.parquet").unlink()
    (ours / "train.parquet").symlink_to(secret.parent / "train.parquet")
    with refused(r"train\.parquet' is a link that leads out", secret):
        open_source(str(ours), "train")
    (ours / "train.parquet").unlink()
    folder = write_class(ours / "train", "0.png")
    (folder / "1.png").symlink_to(secret)
    lines = [json.dumps({"file_name": f"{i}.png", "label": i}) for i in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with refused(r"1\.png' is a link that leads out", secret):
        open_source(str(ours), "train").table()


def test_names_of_files_are_no_patterns(ours, secret) -> None:
    """`datasets` would have all that match them, also what a link leads to."""
    (ours / "*").mkdir()
    (ours / "other").mkdir()
    write_rows(ours / "*" / "train[0].parquet", own())
    shutil.copy(secret.parent / "train.parquet", ours / "other" / "train0.parquet")
    (ours / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: '[*]/*.parquet'}\n---\n")
    with harmless(secret):
        table = open_source(str(ours), "train").table()
    assert [decode_image(row["image"])[0, 0, 0].item() for row in table] == [1]


def test_home_is_the_folder_and_not_its_namesake(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="outside"):
        home_of_folder(tmp_path / "a").place(str(tmp_path / "ab" / "x.png"))


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
    write_rows(served / "train.parquet", [*own(), *({"bytes": None, "path": way} for way in ways)])
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

    def said(hub, home: str) -> list[str]:  # a cache for each run: to this hub all files are of one version
        environment = without("HF_", HF_HOME=str(tmp_path / home), HF_ENDPOINT=hub.address)
        return run_python("-c", script, NAME, environment=environment).stdout.splitlines()

    with elsewhere, serving(served) as hub:
        skipped, refusal, seen = said(hub, "home")
        assert (skipped, seen) == ("[4, 0, 0, 0]", "[] False []")
        assert refusal.startswith(f"dataset '{NAME}': a row names a file that is not its own: 'http://")
        for number, pattern in enumerate((ways[0], f"reference://a::{ways[0]}")):
            card = f"---\nconfigs:\n- {{config_name: default, data_files: '{pattern}'}}\n---\n"
            (served / "README.md").write_text(card)
            refusal, seen = said(hub, f"home{number}")
            assert "README.md names data files outside of the data set" in refusal
            assert seen == "[] False []"


# --- what describes the data set -------------------------------------------------------------------------------------

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
def test_a_card_names_no_data_files_outside_of_the_data_set(ours, secret, config) -> None:
    write_rows(ours / "train.parquet", own())
    text = f"configs:\n- config_name: default\n  {config.format(outside=secret.parent)}\n"
    for mark in ("", "\ufeff"):  # a byte order mark
        for name, content in (("README.md", f"---\n{text}---\n# Pictures\n"), (".huggingface.yaml", text)):
            (ours / name).write_text(mark + content)
            with refused(f"{name} names data files outside of the data set", secret):
                open_source(str(ours), "train")
            (ours / name).unlink()


def test_a_card_names_data_files_of_its_own(ours) -> None:
    (ours / "data").mkdir()
    write_rows(ours / "data" / "a.parquet", own(3))
    card = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'data/*.parquet'}"
    (ours / "README.md").write_text(f"---\n{card}\n---\n")
    assert open_source(str(ours), "train").num_examples == 3


@pytest.mark.parametrize("said", [-5, 0, 1, 10**12, "abc", 1.5, None, ".nan"])
def test_a_card_does_not_say_how_many_examples_there_are(ours, said) -> None:
    write_rows(ours / "train.parquet", own(3))
    card = f"---\ndataset_info:\n  splits:\n  - {{name: train, num_examples: {said}}}\n---\n"
    (ours / "README.md").write_text(card)
    source = open_source(str(ours), "train")
    assert (source.num_examples, len(source.table()), sum(source.chunks.sizes)) == (3, 3, 3)


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
    write_rows(ours / "train.parquet", own())
    (ours / "README.md").write_text(f"---\n{card}\n---\n")
    with refused(r"^dataset "):
        open_source(str(ours), "train")


@pytest.mark.parametrize(
    "name", ["README.md", ".huggingface.yaml", "dataset_infos.json", "train.csv", "train/metadata.jsonl"]
)
@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_what_is_read_as_a_whole_is_a_file_and_bounded(ours, name, kind) -> None:
    if name.startswith("train/"):
        write_class(ours / "train")
    elif name != "train.csv":
        write_rows(ours / "train.parquet", own())
    make_file(ours / name, kind)
    with refused():
        open_source(str(ours), "train")


@pytest.mark.parametrize(
    "said",
    ["5", '{"info": 5}', '{"info": {"features": 5}}', "[" * 5000, "decimal128(9999999999999999, 5)", "bogus"],
    ids=lambda said: said[:12],
)
def test_columns_that_are_described_wrongly_are_one_line(ours, said) -> None:
    if not said.startswith(("{", "[", "5")):
        label = {"_type": "Value", "dtype": said}
        said = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    write_rows(ours / "train.parquet", own())
    table = pq.read_table(ours / "train.parquet").replace_schema_metadata({"huggingface": said})
    pq.write_table(table, ours / "train.parquet")
    with refused(r"^dataset "):
        open_source(str(ours), "train")


def write_script(ours: Path) -> None:
    write_rows(ours / "train.parquet", own())
    (ours / "ours.py").write_text(f"open({str(ours.parent / 'outside' / 'executed')!r}, 'w')")


def write_many_rows(ours: Path) -> None:
    kind, rows = pa.struct({"bytes": pa.binary(), "path": pa.string()}), 2**24 + 1
    table = pa.table({"image": pa.nulls(rows, kind), "label": pa.nulls(rows, pa.int64())})
    pq.write_table(table, ours / "train.parquet", row_group_size=rows)
    assert (ours / "train.parquet").stat().st_size < 2**20


def write_deep_infos(ours: Path) -> None:
    write_rows(ours / "train.parquet", own())
    (ours / "dataset_infos.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (write_script, r"scripts are no longer supported, but found ours\.py"),
        (write_many_rows, r"row group 0 of .* in 16,777,217 rows; write smaller ones"),
        (write_deep_infos, r"dataset_infos\.json is damaged"),
        (lambda ours: (ours / "train.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "are of the kind 'hdf5'"),
        (lambda ours: (ours / "train.txt").write_bytes(bytes(100)), "its files are of the kind 'text'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_sets_of_a_kind_that_is_not_read_are_one_line(ours, secret, write, match) -> None:
    write(ours)
    with refused(match, secret):
        open_source(str(ours), "train")


# --- images --------------------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touch x) pop\nshowpage\n%%EOF\n"


def test_only_formats_of_a_list_are_opened(decoder) -> None:
    decode_image({"bytes": picture()})  # a decoder is imported at its first use
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
        with watched() as seen, pytest.raises(UnidentifiedImageError):
            decode_image({"bytes": data, "path": "a.jpg"})
        assert (seen.run, seen.asked, seen.opened) == ([], [], [])


# --- tars and labels -------------------------------------------------------------------------------------------------


def write_tar(file: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for entry, data in members:
            entry = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
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


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


LONG_LINK = "././@LongLink"
BOMBS = {
    "large": (header("0.png", 2**36), "has 68,719,476,736 bytes"),
    "a large label": (header("0.cls", 2**36), "has 68,719,476,736 bytes"),
    "a long name": (header(LONG_LINK, 2**36, tarfile.GNUTYPE_LONGNAME), "a header of 68,719,476,736 bytes"),
    "a long header": (header(LONG_LINK, 2**36, tarfile.XHDTYPE), "a header of 68,719,476,736 bytes"),
    "headers of headers": ((header(LONG_LINK, 2, tarfile.GNUTYPE_LONGNAME) + b"a\0" + bytes(510)) * 5000, "^dataset "),
}


@pytest.mark.parametrize(("content", "why"), BOMBS.values(), ids=BOMBS)
def test_a_tar_that_would_fill_the_memory_is_one_line(ours, content, why) -> None:
    write_tar(ours / "train-0.tar", ("9.png", picture()), ("9.cls", b"1"))
    with (ours / "train-1.tar").open("wb") as file:
        file.write(content)
        file.truncate(2**37)
    with refused(why):
        _ = open_source(str(ours), "train").chunks


def test_a_sparse_member_of_a_tar_is_an_image_that_cannot_be_used(ours) -> None:
    write_tar(ours / "train-0.tar", ("9.png", picture()), ("9.cls", b"1"))
    write_tar(ours / "train-1.tar", ("0.cls", b"2"))
    (ours / "train-1.tar").write_bytes(sparse_header("0.png", 2**36) + (ours / "train-1.tar").read_bytes())
    tracemalloc.start()
    batch = train_on(ours)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26
    assert (batch["labels"].tolist(), batch["skipped"].tolist()) == ([1, 1], [1, 0, 0, 0])


def test_members_of_a_tar_that_lead_elsewhere_are_no_examples(ours, secret) -> None:
    link, hard, device = (tarfile.TarInfo(name) for name in ("1.png", "2.png", "3.png"))
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../outside/secret.png"
    device.type = tarfile.CHRTYPE
    up = [("../../outside/4.png", picture()), ("../../outside/4.cls", b"4")]
    labels = [(f"{i}.cls", b"1") for i in (1, 2, 3)]
    others = [(entry, b"") for entry in (link, hard, device)]
    write_tar(ours / "train.tar", ("0.png", picture()), ("0.cls", b"3"), *up, *labels, *others)
    with harmless(secret):
        source = open_source(str(ours), "train")
        examples = [e for number in range(len(source.chunks.sizes)) for e in source.chunks.read(number)]
        batch = ImageCollator(eval_transform(8), 10)(examples)
    assert batch["labels"].tolist() == [3]
    assert not (secret.parent / "4.png").exists()


@pytest.mark.parametrize("label", ["9" * 5000, "-" + "9" * 5000, "\u0661" * 5000, "\x1b[31m" * 1000, "1e400", "NaN"])
def test_a_label_of_any_length_is_a_short_line(ours, label, caplog) -> None:
    write_rows(ours / "train.parquet", own(2), ["1", label])
    assert train_on(ours)["skipped"].tolist() == [0, 0, 1, 0]
    assert max(map(len, caplog.text.splitlines())) < 400
    assert "\x1b" not in caplog.text
    with refused("label "):
        open_source(str(ours), "train").check_labels(10)
