"""A saved model is, for transformers alone, what the training's evaluation said that it is."""

import functools
import io
import json

import datasets
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_clars import TimmForImageClassification, build_model
from hf_clars.cli import train
from hf_clars.data import decode_image, eval_transform

from .helpers.recipe import config, metrics_of, newest
from .helpers.scripts import ROOT, run_python

TRAINED_ON, TESTED_ON = 1000, 250
SETTINGS = {
    "eval_split": "test", "train_examples": TRAINED_ON, "total_batch_size": 64, "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 100, "num_train_epochs": 3, "data_on_device": True, "augmentation": "none",
    "learning_rate": 1.0, "layer_statistics_steps": 0, "logging_steps": 15, "save_strategy": "epoch",
}  # fmt: skip
RESNET_T = {"model_name": "resnet10t", "model_kwargs": {"channels": [16, 16, 32, 32], "stem_width": 8, "stem_type": ""}}
CIFAR = {"model_name": "resnet8_cifar", "model_kwargs": {"stem_stride": 2}}
GREY = {**CIFAR, "model_kwargs": {"stem_stride": 2, "in_chans": 1}}
RUNS = {  # data, settings, and what the program that loads it needs
    "timm, its size already": ("grey", {**RESNET_T, "image_size": 28, "eval_crop": 0.875}, ()),
    "timm, crop 0.875": ("colour", {**RESNET_T, "image_size": 32, "eval_crop": 0.875}, ()),
    "timm, crop 1": ("colour", {**RESNET_T, "image_size": 24, "eval_crop": 1.0}, ()),
    "own, crop 0.875": ("colour", {**CIFAR, "image_size": 20, "eval_crop": 0.875}, ("hf_clars",)),
    "own, one channel": ("grey", {**GREY, "image_size": 24, "eval_crop": 1.0}, ("hf_clars",)),
}


def coloured(example: dict) -> dict:
    """Other channels at other brightness, and no square."""
    grey = np.asarray(example["image"])
    channels = np.pad(np.stack((grey, 255 - grey, grey // 2), -1), ((0, 0), (2, 5), (0, 0)))
    data = io.BytesIO()
    Image.fromarray(channels).save(data, "PNG")
    return {"image": {"bytes": data.getvalue(), "path": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of bundled images, as they are and coloured."""
    bundled = ROOT / "recipes" / "demo" / "fashion_mnist"
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("grey", "colour", "cache")}
    for split, size in (("train", TRAINED_ON), ("test", TESTED_ON)):
        file = f"{split}-00000-of-00001.parquet"
        table = datasets.Dataset.from_parquet(str(bundled / file), cache_dir=str(folders["cache"]))
        table = table.select(range(size))
        table.to_parquet(folders["grey"] / file)
        table.map(coloured, features=table.features).to_parquet(folders["colour"] / file)
    return folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """By the name of a run: the folder that its training left."""

    @functools.cache
    def folder(name):
        kind, settings, _ = RUNS[name]
        folder = tmp_path_factory.mktemp("run")
        assert train(config(folder, data[kind], **SETTINGS, **settings)) == 0
        return folder

    return folder


def each(*quick):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in RUNS]
    )


@each("timm, crop 0.875")
def test_a_pipeline_is_as_good_as_the_evaluation(trained, data, name):
    """Of the same test images as PIL images, in a process that has nothing of hf_clars unless that is needed."""
    kind, _, words = RUNS[name]
    program, split = ROOT / "tests" / "helpers" / "classify.py", data[kind] / "test-00000-of-00001.parquet"
    share = float(run_python(program, split, trained(name) / "run", *words).stdout.splitlines()[-1])
    said = metrics_of(trained(name))["eval_accuracy"]
    print(f"{name}: evaluation {said:.4f}, pipeline {share:.4f}")
    assert said > 0.4
    assert share == pytest.approx(said, abs=1 / TESTED_ON + 1e-9)


@each("timm, crop 0.875", "own, one channel")
def test_a_checkpoint_says_the_same(trained, name):
    saved = json.loads((trained(name) / "run" / "config.json").read_text())
    assert (
        json.loads((trained(name) / "run" / f"checkpoint-{newest(trained(name))}" / "config.json").read_text()) == saved
    )


@each("timm, crop 0.875", "own, one channel")
def test_auto_classes_see_what_the_evaluation_sees(trained, data, name):
    """The processor resizes with Pillow and the evaluation with torch, which round a level of 255 apart."""
    kind, settings, _ = RUNS[name]
    run = trained(name) / "run"
    split = str(data[kind] / "test-00000-of-00001.parquet")
    table = datasets.Dataset.from_parquet(split, cache_dir=str(data["cache"]))
    raw = table.cast_column("image", datasets.Image(decode=False))[:50]["image"]
    transform = eval_transform(settings["image_size"], settings["eval_crop"])
    ours = TimmForImageClassification.from_pretrained(run).eval()
    pixels = torch.stack([transform(decode_image(image)) for image in raw])
    images = [image.convert("RGB") for image in table[:50]["image"]]
    auto = AutoModelForImageClassification.from_pretrained(run).eval()
    inputs = AutoImageProcessor.from_pretrained(run)(images, return_tensors="pt")
    one_channel = ours.config.pretrained_cfg["input_size"][0] == 1
    with torch.no_grad():
        expected, logits = ours(pixels).logits, (ours if one_channel else auto)(**inputs).logits
    assert (expected - logits).abs().max() < 0.02 * expected.std()
    if not one_channel:
        assert auto.config.id2label[0] == "T-shirt/top"


def test_what_is_built_is_processed_as_timm_does_or_as_is_stated(tmp_path):
    """Without a training, too."""
    model = build_model("vit_tiny_patch16_224", 3, img_size=32, depth=1)
    model.save_pretrained(tmp_path / "timm")
    image = Image.effect_mandelbrot((50, 40), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    given = timm.data.resolve_model_data_config(model.timm_model) | {"input_size": (3, 32, 32)}
    expected = timm.data.create_transform(**given)(image)
    assert torch.equal(AutoImageProcessor.from_pretrained(tmp_path / "timm")(image)["pixel_values"][0], expected)
    AutoModelForImageClassification.from_pretrained(tmp_path / "timm")(expected[None])

    model.set_preprocessing(32, 0.8)
    model.save_pretrained(tmp_path / "stated")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "stated")(image)["pixel_values"] * model.pixel_std
    decoded = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (pixels + model.pixel_mean - eval_transform(32, 0.8)(decoded)[None]).abs().max() < 1.01


def test_the_model_card(trained, data):
    run = trained("own, one channel") / "run"
    card = ModelCard.load(run / "README.md", ignore_metadata_errors=False)
    result = next(r for r in card.data.eval_results if r.metric_type == "accuracy")
    assert result.metric_value == metrics_of(trained("own, one channel"))["eval_accuracy"]
    about = card.data.to_dict()
    assert (about["library_name"], about["pipeline_tag"]) == ("transformers", "image-classification")
    rows = dict(
        line.strip("| ").split(" | ")
        for line in card.text.splitlines()
        if line.count(" | ") == 1 and not line.endswith("| |")
    )
    expected = {
        "optimizer": "clars", "norms (mode)": "per_sample", "η": "0.01", "batch B": "64", "schedule": "polynomial",
        "γ_scale (learning rate)": "1", "epochs": "3", "image size": "24", "crop in evaluation": "1",
    }  # fmt: skip
    assert {name: rows[name] for name in expected} == expected
    assert rows["steps"] == str(3 * (TRAINED_ON // 64))
    assert "from hf_clars import TimmForImageClassification" in card.text
    assert "hf_clars import" not in (trained("timm, crop 0.875") / "run" / "README.md").read_text()
    assert str(data["grey"].parent) not in card.content


def test_no_secret_is_in_the_card(tmp_path, images, monkeypatch):
    token = "hf_" + 34 * "x"
    monkeypatch.setenv("HF_TOKEN", token)
    flags = ["--max_steps", "1", "--run_name", token, "--hub_token", token]
    assert train([*config(tmp_path, images), *flags, "--push_to_hub", "false"]) == 0
    assert token not in (tmp_path / "run" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "run" / "README.md").read_text()
