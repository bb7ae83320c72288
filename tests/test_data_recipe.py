"""The recipe on data as people have them: what it learns is what it is evaluated on."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_clars.cli import train

from .helpers.data_files import write_members
from .helpers.recipe import config, metrics_of

pytestmark = pytest.mark.usefixtures("datasets_cache")
CLASSES = ("ant", "bee", "cow", "dog")


def picture(label: int, number: int) -> bytes:
    """Of a colour that tells the class."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (8, 8, 3), np.uint8)
    pixels[:, :, :] += np.array([(180, 0, 0), (0, 180, 0), (0, 0, 180), (180, 180, 0)][label], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folders(root: Path) -> dict:
    for split, labels, each in (("training", range(4), 32), ("validation", (3,), 16)):
        for label in labels:
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True)
            for number in range(each):
                (folder / f"{number}.PNG").write_bytes(picture(label, number))
                (folder / f"._{number}.PNG").write_bytes(b"of a Mac")
    return {}


def tars(root: Path) -> dict:
    for split, labels, each in (("train", range(4), 32), ("test", (3,), 16)):
        images = [(f"{label}.{n}.PNG", picture(label, n)) for label in labels for n in range(each)]
        texts = [(f"{label}.{n}.CLS", str(label).encode()) for n in range(each) for label in labels]
        write_members(root / f"{split}.tar", images + texts)
    return {"num_classes": 4}


@pytest.mark.slow
@pytest.mark.parametrize("write", [folders, tars])
def test_a_class_alone_in_the_evaluation_is_recognised(tmp_path, write):
    options = {
        "model_name": "resnet8_cifar", "model_kwargs": {}, "image_size": 8, "augmentation": "none",
        "num_train_epochs": 6,
        **write(tmp_path / "data"),
    }  # fmt: skip
    assert train(config(tmp_path, tmp_path / "data", **options)) == 0
    assert metrics_of(tmp_path)["eval_accuracy"] > 0.9
