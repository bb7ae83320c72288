"""Data as people have them: tars and folders in any order and with anything beside the images."""

import gzip
import io
import itertools
import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clars import ClarsTrainingArguments, UserError
from hf_clars.data import ImageCollator, decode_image, eval_transform, open_source
from hf_clars.data.tars import TarChunks
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.image_classification.data import open_data

from .helpers.data_files import examples_of, png, red, write_images, write_members

IMAGES = ("jpg", "jpeg", "png", "webp")


pytestmark = pytest.mark.usefixtures("datasets_cache")


def found(chunks) -> list[tuple[str, bytes, str | None]]:
    examples = [example for number in range(len(chunks.sizes)) for example in chunks.read(number)]
    assert len(examples) == chunks.sizes.sum()
    return [(e["image"]["path"], e["image"]["bytes"], e["label"]) for e in examples]


# --- tars --------------------------------------------------------------------------------------------------------

KEY_LETTERS = st.text("ab.é", min_size=1, max_size=5).filter(lambda key: key[0] != "." and ".." not in key)
FOLDERS = st.sampled_from(["", "./", "x/", "x.y/", "a-very-long-name" * 8 + "/"])


@st.composite
def tars(draw) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes, str | None]]]:
    """Members in any order, and the examples that they are."""
    folder = draw(FOLDERS)
    keys = draw(st.lists(KEY_LETTERS.map(lambda key: folder + key.rstrip(".") + "k"), unique=True, max_size=8))
    keys += [f"{folder}{i:03d}" for i in range(draw(st.sampled_from([0, 3, 70])))]
    members, known = [], []
    for number, key in enumerate(keys):
        extension = draw(st.sampled_from(IMAGES))
        shown = draw(st.sampled_from([extension, extension.upper(), extension.capitalize()]))
        # A dotted key without a label may be a further part of another example; those are tested by themselves.
        label = str(number) if "." in key.rpartition("/")[2] or draw(st.booleans()) else None
        image = f"{key}.{shown}", f"pixels of {number}".encode()
        known.append((*image, label))
        members.append(image)
        if label is not None:
            members.append((f"{key}.{draw(st.sampled_from(['cls', 'CLS']))}", f"{label}\n".encode()))
        members += [(f"{key}.{part}", b"no image") for part in draw(st.sets(st.sampled_from(["json", "txt", "x.npy"])))]
        head, _, base = key.rpartition("/")
        if draw(st.booleans()):
            members.append((f"{head}/._{base}.{shown}".lstrip("/"), b"of a Mac"))
    members += draw(st.sampled_from([[], [("__MACOSX/._a.jpg", b"junk"), (".DS_Store", b"junk"), ("README", b"text")]]))
    return draw(st.permutations(members)), known


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(tars())
def test_a_tar_has_the_examples_that_are_in_it_in_any_order_of_its_members(drawn):
    members, known = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        write_members(path, members)
        chunks = TarChunks([str(path)], IMAGES, "cls")
        assert sorted(found(chunks), key=str) == sorted(known, key=str)
        assert all(size == 64 for size in chunks.sizes[:-1])


def test_images_first_and_labels_last(tmp_path):
    images = [(f"{i:03d}.JPEG", png(i)) for i in range(130)]
    labels = [(f"{i:03d}.cls", str(i % 2).encode()) for i in reversed(range(130))]
    write_members(tmp_path / "train.tar", images + labels)
    source = open_source(str(tmp_path), "train")
    source.check_labels(2)
    assert source.chunks.sizes.tolist() == [64, 64, 2]
    examples = examples_of(source)
    assert [red(example) for example in examples] == list(range(130))
    assert [example["label"] for example in examples] == [str(i % 2) for i in range(130)]
    table = source.table()
    assert [red(row) for row in table] == list(range(130))
    assert [row["label"] for row in table] == [str(i % 2) for i in range(130)]
    assert [red(row) for row in open_source(str(tmp_path), "train[3:5]").table()] == [3, 4]


def test_a_further_part_is_no_example_of_its_own(tmp_path):
    members = [("a.jpg", b"A"), ("a.cls", b"0"), ("a.seg.jpg", b"mask"), ("b.1.jpg", b"B1"), ("b.2.jpg", b"B2"),
               ("b.2.cls", b"1"), ("c.png", b"C"), ("c.jpg", b"preferred"), ("c.cls", b"2")]  # fmt: skip
    for order in itertools.islice(itertools.permutations(members), 0, 362_880, 9_001):
        write_members(tmp_path / "a.tar", list(order))
        known = [("a.jpg", b"A", "0"), ("b.1.jpg", b"B1", None), ("b.2.jpg", b"B2", "1"), ("c.jpg", b"preferred", "2")]
        assert sorted(found(TarChunks([str(tmp_path / "a.tar")], IMAGES, "cls"))) == known
        assert found(TarChunks([str(tmp_path / "a.tar")], ["seg.jpg"], "cls")) == [("a.seg.jpg", b"mask", "0")]


def test_the_columns_of_a_tar_may_be_named(tmp_path):
    write_members(tmp_path / "train.tar", [("a.png", png(1)), ("a.kind", b"1"), ("a.seg.PNG", png(2)), ("a.cls", b"0")])
    for image, label, known in (("png", "kind", (1, "1")), ("seg.png", None, (2, "0")), ("PNG", "CLS", (1, "0"))):
        (example,) = examples_of(open_source(str(tmp_path), "train", image_column=image, label_column=label))
        assert (red(example), example["label"]) == known
    with pytest.raises(UserError, match=r"image_column='jpg': .* has no such column; it has png, kind, seg.png, cls"):
        open_source(str(tmp_path), "train", image_column="jpg")


def test_a_member_with_holes_is_no_image(tmp_path):
    """Its header says 8 GB, of which nothing is stored."""
    entry = tarfile.TarInfo("hole.png")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # as large as it can say
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    write_members(tmp_path / "train.tar", [("a.png", png(1)), ("a.cls", b"0"), ("hole.cls", b"1" * 5000)])
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(bytes(header[:512]) + whole)
    hole, image = examples_of(open_source(str(tmp_path), "train"))
    assert (hole["image"], len(hole["label"])) == ({"bytes": b"", "path": "hole.png"}, 5000)
    batch = ImageCollator(eval_transform(8), 2)([hole, image])
    assert batch["labels"].tolist() == [0, 0]
    assert batch["skipped"].sum() == 1


def test_a_tar_that_was_replaced_is_read_again(tmp_path):
    for label in (b"0", b"1"):
        write_members(tmp_path / "train.tar", [("a.png", png(1)), ("a.cls", label), ("b.txt", b"x" * int(label))])
        assert [row["label"] for row in open_source(str(tmp_path), "train").table()] == [label.decode()]


# --- folders -----------------------------------------------------------------------------------------------------

JUNK = ("._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/1-checkpoint.jpg", "notes.txt",
        "__MACOSX/._2.png", "@eaDir/1.jpg/THUMB.jpg", ".hidden.png", "below/9.jpg", "below/further/8.png")  # fmt: skip
JUNK_ABOVE = ("__MACOSX/cat/1.jpg", ".git/cat/1.jpg", ".ipynb_checkpoints/cat/1.jpg", "annotations/1.xml", "1.jpg")


@st.composite
def trees(draw) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """Files of a data set, and images by split and class."""
    words = draw(st.sampled_from([("train", "val"), ("training", "validation"), ("Train", "Test"), ("train", "dev"),
                                  ("training", "testing"), ("train", "valid")]))  # fmt: skip
    classes = draw(st.lists(st.sampled_from(["ant", "bee.2", "Cow", "dog", "é"]), unique=True, min_size=1))
    present = draw(st.lists(st.sampled_from(classes), unique=True, min_size=1))
    files, known = [], {}
    for split, names in zip(words, (classes, present), strict=True):
        known[split] = {}
        for number, name in enumerate(names):
            images = draw(
                st.sets(st.sampled_from(["1.jpg", "2.JPG", "3.JPEG", "x.y.png", "4.Gif", "5.webp"]), min_size=1)
            )
            # The first class has its images right in its folder, so that this is a folder by class at all.
            below = draw(st.sampled_from(["", "", "images/", "a/b/"])) if number else ""
            known[split][name] = sorted(f"{split}/{name}/{below}{image}" for image in images)
            files += known[split][name]
            junk = draw(st.sets(st.sampled_from(JUNK)))
            files += [f"{split}/{name}/{file}" for file in junk if not (below and file.startswith("below"))]
        files += [f"{split}/{file}" for file in draw(st.sets(st.sampled_from(JUNK_ABOVE)))]
    files += draw(st.lists(st.sampled_from(["__MACOSX/cat/._1.jpg", "README.md", ".DS_Store"])))
    return files, known


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(trees())
def test_a_folder_has_the_examples_that_are_in_it_and_one_number_for_a_class(drawn):
    files, known = drawn
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            path = Path(folder) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        (train, classes), (evaluated, _) = known.items()
        number = {name: label for label, name in enumerate(sorted(classes))}
        for asked, split in (("train", train), ("validation", evaluated)):
            source = open_source(folder, asked)
            assert (source.split, source.class_names) == (split, sorted(classes))
            expected = {path: number[name] for name, paths in known[split].items() for path in paths}
            chunks, table = examples_of(source), source.table()
            for rows in (chunks, table):
                assert len(rows) == len(expected)
                assert {str(Path(r["image"]["path"]).relative_to(folder)): r["label"] for r in rows} == expected


def test_what_lies_beside_images_is_left_out_and_said(tmp_path, caplog):
    write_images(tmp_path / "train", cat=3, dog=3)
    write_images(tmp_path / "train" / "cat", small=2)
    (tmp_path / "train" / "notes").mkdir()
    source = open_source(str(tmp_path), "train")
    assert (source.class_names, source.num_examples) == (["cat", "dog"], 6)
    first, second = caplog.messages
    assert first == "1 folders without images are no classes: notes"
    assert second.startswith("2 images in folders beside the images of a class are left out: ")
    assert "small/0.png" in second


@pytest.mark.parametrize("words", [("training", "validation"), ("TRAIN", "VAL"), ("fit", "check")])
def test_a_class_that_training_does_not_have_is_refused(tmp_path, words):
    train, evaluated = words
    write_images(tmp_path / train, ant=1, cow=1, dog=1)
    write_images(tmp_path / evaluated, dog=1)
    options = {"train_split": train} if train == "fit" else {}
    assert [row["label"] for row in open_source(str(tmp_path), evaluated, **options).table()] == [2]
    write_images(tmp_path / evaluated, bee=1)
    with pytest.raises(UserError, match=rf"{evaluated}/bee is a class that .*{train} does not have"):
        open_source(str(tmp_path), evaluated, **options)


def test_folders_that_datasets_finds_have_the_training_classes_too(tmp_path):
    deep = tmp_path / "data" / "of" / "someone"
    write_images(deep / "train", ant=1, bee=2, cow=1)
    write_images(deep / "validation", cow=2)
    (deep / "validation" / "cow" / "._0.png").write_bytes(b"of a Mac")
    source = open_source(str(tmp_path), "validation")
    assert source.class_names == ["ant", "bee", "cow"]
    assert [row["label"] for row in source.table()] == [2, 2]
    assert [example["label"] for example in examples_of(source)] == [2, 2]
    write_images(deep / "validation", dog=1)
    with pytest.raises(UserError, match="split 'validation' has classes that 'train' does not have: dog"):
        open_source(str(tmp_path), "validation")


@pytest.mark.parametrize("option", ["config", "image_column", "label_column"])
def test_what_folders_of_classes_do_not_have_is_refused(tmp_path, option):
    write_images(tmp_path / "train", ant=1, bee=1)
    name = f"{'dataset_' if option == 'config' else ''}{option}"
    with pytest.raises(UserError, match=f"folder of images by class, which has no {name}: leave out {name}=image"):
        open_source(str(tmp_path), "train", **{option: "image"})


@pytest.mark.parametrize(
    ("file", "is_what"),
    [
        ("train.zip", "train.zip is a file"),
        ("train-0.parquet", "train-0.parquet is a file"),
        ("train/metadata.csv", "train has metadata"),
        ("training/0.png", "training holds no folders of images"),
    ],
)
def test_a_split_in_another_form_is_said_to_be_there(tmp_path, file, is_what):
    write_images(tmp_path / "val", ant=1, bee=1)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=f"{is_what}, and val is a folder of images by class: bring all splits into"):
        open_source(str(tmp_path), "train")


def test_names_as_labels_of_metadata_are_not_asked_to_be_counted(tmp_path):
    """Their number would be of no use."""
    for split in ("train", "validation"):
        write_images(tmp_path / split, images=2)
        rows = [{"file_name": f"images/{i}.png", "label": name} for i, name in enumerate(("ant", "bee"))]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe, args = RecipeArguments(dataset=str(tmp_path)), ClarsTrainingArguments(str(tmp_path), use_cpu=True)
    for classes, numbers in ((None, "whole numbers from 0"), (2, "0 to 1")):
        with pytest.raises(UserError, match=f"label ant of row 0 in .* is no whole number: labels are {numbers}, or "):
            open_data(replace(recipe, num_classes=classes), args)


def test_files_that_number_their_classes_otherwise_are_refused(tmp_path):
    for split, names in (("train", ["ant", "bee", "cow"]), ("test", ["ant", "cow"])):
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = {"image": [{"bytes": png(1), "path": None}] * 2, "label": [0, 1]}
        Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}-0.parquet")
    open_source(str(tmp_path), "train").check_labels(3)
    with pytest.raises(UserError, match=r"class 1 is 'cow' in test-0.parquet and 'bee' in the first file"):
        open_source(str(tmp_path), "test").check_labels(3)


def test_classes_right_in_the_folder_are_the_training_split(tmp_path):
    """`datasets` would take `train old` and `test_1.png` for splits, and leave out the rest."""
    write_images(tmp_path, bus=2, train_old=1)
    (tmp_path / "bus" / "0.png").rename(tmp_path / "bus" / "test_1.png")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "README.md").write_text("# Vehicles\n")
    source = open_source(str(tmp_path), "train")
    assert (source.split, source.class_names, source.num_examples) == ("train", ["bus", "train_old"], 3)
    assert [row["label"] for row in source.table()] == [0, 0, 1]
    assert [example["label"] for example in examples_of(source)] == [0, 0, 1]


@pytest.mark.parametrize("file", ["train.csv", "train.json", "train.jsonl", "train.csv.gz"])
def test_rows_of_text_name_images(tmp_path, file):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = [{"image": f"{i}.png", "label": i} for i in range(2)]
    if ".csv" in file:
        text = "image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows)
    else:
        text = json.dumps(rows) if file.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / file).write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())
    source = open_source(str(tmp_path), "train")
    source.check_labels(2)
    for found in (examples_of(source), source.table()):
        assert [(red(row), row["label"]) for row in found] == [(0, 0), (1, 1)]


def test_images_of_other_formats_and_names_that_are_no_text_are_said(tmp_path, caplog):
    write_images(tmp_path / "train", cat=1, dog=1)
    for name in ("1.jfif", "2.JPE"):
        (tmp_path / "train" / "cat" / name).write_bytes(png(1))
    (tmp_path / "train" / "cat" / "3.avif").write_bytes(b"")
    assert open_source(str(tmp_path), "train").num_examples == 4
    assert [m for m in caplog.messages if m.startswith("1 images of formats that are not read are left out")]
    os.mkdir(os.fsencode(tmp_path / "train") + b"/c\xe9")
    with open(os.fsencode(tmp_path / "train") + b"/c\xe9/1.png", "wb") as file:
        file.write(png(1))
    with pytest.raises(UserError, match="its name is not UTF-8: rename it"):
        open_source(str(tmp_path), "train")


def test_a_compressed_tar_is_one_line(tmp_path):
    write_members(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0")])
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"train\.tar\.gz: tars that are compressed are not read"):
        open_source(str(tmp_path), "train")


def test_floating_point_pixels_have_no_scale():
    file = io.BytesIO()
    PIL.Image.new("F", (8, 8), 0.5).save(file, "TIFF")
    with pytest.raises(ValueError, match="floating point numbers, of a range that it does not say"):
        decode_image({"bytes": file.getvalue(), "path": None})
