"""The recipe from YAML to plots, and one clear line for each thing a user can get wrong."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import get_scheduler

from hf_clars import TimmForImageClassification, UserError
from hf_clars.cli import main, train
from hf_clars.configuration import parse, with_numbers
from hf_clars.image_classification import recipe
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.trainer import ClarsTrainingArguments

from .helpers.recipe import RECIPES, assert_same, config, metrics_of, result, write_splits
from .helpers.scripts import run_python
from .helpers.training import log_of


def test_from_yaml_to_plots(tmp_path, images, capsys):
    assert train([*config(tmp_path, images, plots=True, eval_strategy="epoch"), "--num_train_epochs", "5"]) == 0
    printed = capsys.readouterr().out
    assert "B = 32 = 8 a device × 4 accumulated × 1 process(es); 2 steps an epoch" in printed
    assert "γ_scale = 2, η = 0.01, norms: per_sample" in printed
    run = tmp_path / "run"
    logs = log_of(run)
    assert [e["epoch"] for e in logs if "eval_accuracy" in e][:5] == [1, 2, 3, 4, 5]
    losses = [e["loss"] for e in logs if "loss" in e]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert metrics_of(tmp_path)["eval_accuracy"] > 1 / 3
    for picture in ("curves.png", "layers.png"):
        with Image.open(run / picture) as drawn:
            assert drawn.size[0] > 500
    model = TimmForImageClassification.from_pretrained(run)
    assert model.config.id2label == {0: "dark", 1: "grey", 2: "light"}
    assert main(["plot", str(run)]) == 0


def resumed_is_uninterrupted(folder: Path, dataset: Path, last: int, **options) -> None:
    """From the checkpoint before the last one on, as where a kill came before that was written."""
    whole, cut = folder / "whole", folder / "cut"
    assert train(config(whole, dataset, **options)) == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "run" / f"checkpoint-{last}")
    assert train([*config(cut, dataset, **options), "--resume_from_checkpoint", "auto"]) == 0
    assert_same(result(whole), result(cut))


def test_workers_and_resuming(tmp_path, images):
    """Cut off amid the second epoch and resumed, with decoding workers and random crops: the same training."""
    options = {"augmentation": "random_resized_crop", "dataloader_num_workers": 2, "eval_strategy": "no"}
    resumed_is_uninterrupted(tmp_path, images, 4, save_strategy="steps", save_steps=1, **options)


@pytest.mark.parametrize("given", [None, True])
def test_channels_last(tmp_path, images, given, monkeypatch):
    """By default on a GPU alone; checkpoints do not know of it."""
    formats = []

    class Looking(recipe.ImageTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            formats.append(
                [t.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4
                 and min(p.shape[1], p.shape[2]) > 1 for t in (p, p.grad)]
            )  # fmt: skip
            return loss

    monkeypatch.setattr(recipe, "ImageTrainer", Looking)
    if given:
        resumed_is_uninterrupted(tmp_path, images, 4, save_strategy="epoch", eval_strategy="no", channels_last=True)
    else:
        assert train(config(tmp_path, images, max_steps=1, eval_strategy="no")) == 0
    assert formats[0] != []
    assert all(all(each) is bool(given) for each in formats)


def test_channels_last_and_fsdp(tmp_path, images, monkeypatch, capfd):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch says it
    assert train(config(tmp_path, images, channels_last=True)) == 2
    assert "error: channels_last=True does not go with FSDP" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(p.name for p in (RECIPES / "imagenet").glob("*.yaml")))
def test_imagenet_recipes_hold_the_papers_settings(name):
    flags = ["--config", str(RECIPES / "imagenet" / name), "--use_cpu", "true", "--bf16", "false"]
    recipe, args = parse(flags, RecipeArguments, ClarsTrainingArguments)
    model, optim = name.removesuffix(".yaml").rsplit("_", 1)
    assert (recipe.model_name, args.optim.value, recipe.dataset) == (model, optim, "ILSVRC/imagenet-1k")
    assert args.total_batch_size == 16384
    assert args.gradient_accumulation_steps == 64
    assert args.learning_rate == (6.0 if "mobilenet" in model else 25.0)
    assert args.num_train_epochs == (150 if "mobilenet" in model else 90)
    assert args.optimizer_options().eta == (1e-2 if optim == "clars" else 1e-3)
    assert args.warmup_steps == (0 if optim == "clars" else 390)
    assert args.lr_scheduler_type == "polynomial"
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, args.warmup_steps, 1390, scheduler_specific_kwargs=args.lr_scheduler_kwargs
    )
    factor = schedule.lr_lambdas[0]
    ramp = args.warmup_steps
    assert factor(ramp) == 1
    halfway = (args.learning_rate - 1e-4) * 0.25 + 1e-4  # power 2, to 1e-4
    assert factor((ramp + 1390) // 2) * args.learning_rate == pytest.approx(halfway)


@pytest.mark.parametrize(
    ("recipe", "flag", "value", "left_out"),
    [
        ("imagenet/resnet50_lars", "warmup_epochs", 1.0, ("warmup_steps", 0)),
        ("imagenet/resnet50_lars", "base_learning_rate", 0.1, ("learning_rate", 12.8)),
        ("sweeps/cifar10/lars", "learning_rate", 3.0, ("base_learning_rate", None)),
    ],
)
def test_a_flag_replaces_what_the_file_says_in_other_words(recipe, flag, value, left_out):
    flags = ["--config", recipe, f"--{flag}", str(value), "--use_cpu", "true", "--bf16", "false"]
    flags += ["--total_batch_size", "16384", "--per_device_train_batch_size", "256", "--dataset", "x/y"]
    _, args = parse(flags, RecipeArguments, ClarsTrainingArguments)
    key, expected = left_out
    assert (getattr(args, flag), getattr(args, key)) == (value, expected)


@pytest.mark.parametrize("form", [["--eta", "null"], ["--eta=null"]])
def test_null_takes_a_key_out_of_the_file(form):
    flags = ["--config", "sweeps/cifar10/lars", "--optim", "mnag", "--learning_rate", "0.1", "--dataset", "x/y"]
    with pytest.raises(UserError, match=r"eta=.* is nothing that optim='mnag' takes: .*--eta null"):
        parse(flags, RecipeArguments, ClarsTrainingArguments)
    _, args = parse([*flags, *form], RecipeArguments, ClarsTrainingArguments)
    assert (args.optim_name, args.eta) == ("mnag", None)
    kept = ["--config", "sweeps/cifar10/lars", "--dataset", "x/y", "--learning_rate", "null"]
    assert parse(kept, RecipeArguments, ClarsTrainingArguments)[1].base_learning_rate == 5.0  # of the file
    with pytest.raises(UserError, match="null"):  # a field that has no None
        parse([*flags, *form, "--num_train_epochs", "null"], RecipeArguments, ClarsTrainingArguments)


@pytest.mark.parametrize("text", ["1e-4", "1E4", "-2.5e+3"])
def test_numbers_that_yaml_takes_for_text_are_numbers(text):
    assert with_numbers({"a": [text, {"b": text}], "c": "x"}) == {"a": [float(text), {"b": float(text)}], "c": "x"}
    assert with_numbers("1e-4x") == "1e-4x"


def test_pictures_are_drawn_where_they_can_be(tmp_path, images, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    assert train(config(tmp_path, images, plots=True)) == 2
    assert "error: plots need matplotlib" in capfd.readouterr().err
    assert train(config(tmp_path, images, plots=None, max_steps=1)) == 0
    assert "run/ (no pictures: matplotlib is not installed)" in capfd.readouterr().out
    monkeypatch.undo()
    assert train(config(tmp_path / "with", images, plots=None, max_steps=1)) == 0
    assert "run/ (curves.png, layers.png)" in capfd.readouterr().out


def test_more_classes_than_names(tmp_path, images):
    assert train([*config(tmp_path, images, eval_strategy=False), "--num_classes", "7", "--max_steps", "1"]) == 0


def test_flags_win_over_the_file(tmp_path, images):
    recipe, args = parse(
        [*config(tmp_path, images, eta="2e-2"), "--learning_rate", "7", "--model_kwargs", '{"channels": [8, 8, 8, 8]}'],
        RecipeArguments, ClarsTrainingArguments,
    )  # fmt: skip
    assert (args.learning_rate, args.eta, recipe.model_kwargs) == (7.0, 0.02, '{"channels": [8, 8, 8, 8]}')
    assert args.lr_scheduler_kwargs == {"power": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": "clarz"}, "optim='clarz' is unknown; did you mean 'clars'"),
        ({"model_name": "resnet51"}, "has no model 'resnet51'; did you mean"),
        ({"dataset": "./no/such/folder"}, "'./no/such/folder': no such folder"),
        ({"eval_split": "nope"}, "split"),
        ({"augmentation": "mixup"}, "augmentation='mixup' is"),
        ({"totl_batch_size": 1}, "unknown key 'totl_batch_size'; did you mean total_batch_size?"),
        ({"optim_args": "etta=1"}, "'etta' is unknown to optim='clars'; did you mean 'eta'?"),
        ({"total_batch_size": 33}, "total_batch_size=33 is no multiple of"),
        ({"total_batch_size": 96}, "72"),
        ({"num_classes": 2}, "label 2"),
        ({"model_kwargs": {"depht": 3}}, "timm cannot build 'resnet10t' with"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"num_train_epochs": "many"}, "num_train_epochs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_one_clear_line(tmp_path, images, capfd, change, message):
    assert train(config(tmp_path, change.pop("dataset", images), **change)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert message in errors[0]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_one_clear_line_for_files_and_flags(tmp_path, images, capfd):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    for argv, message in (
        (["--config", str(tmp_path / "none.yaml")], "none.yaml: no such file"),
        ([*config(tmp_path, images), "--image_size", "28.5"], "image_size"),
        ([*config(tmp_path, images), "--max_steps", "0", "--num_train_epochs", "0"], "num_train_epochs"),
        ([*config(tmp_path, images), "--per_device_eval_batch_size", "0"], "per_device_eval_batch_size"),
        ([*config(tmp_path, images), "--lr_scheduler_kwargs", "notjson"], "lr_scheduler_kwargs"),
        (["--config", str(tmp_path / "list.yaml")], "must hold keys and values, not a list"),
        (["--config", str(tmp_path / "broken.yaml")], "is not YAML"),
        (
            [*config(tmp_path, images), "--lerning_rate", "3"],
            "unknown flag --lerning_rate; did you mean learning_rate?",
        ),
        ([*config(tmp_path, images), "--learning_rate", "fast"], "learning_rate"),
        ([*config(tmp_path, images), "stray"], "unexpected argument 'stray'"),
        ([*config(tmp_path, images), "--model_kwargs", "{broken"], "model_kwargs"),
    ):
        assert train(argv) == 2, argv
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    (tmp_path / "file").touch()
    for flags, message in (
        (["--resume_from_checkpoint", "true"], "there is no whole checkpoint in"),
        (["--resume_from_checkpoint", str(tmp_path)], "is not a whole checkpoint (it has no trainer_state.json)"),
        (["--output_dir", str(tmp_path / "file")], "cannot be written"),
    ):
        assert train([*config(tmp_path, images), *flags]) == 2, flags
        assert message in capfd.readouterr().err
    assert main(["plot", str(tmp_path)]) == 2
    assert "no trainer_state.json" in capfd.readouterr().err


def test_labels_and_empty_splits(tmp_path, capfd):
    outside = write_splits(tmp_path / "outside", {"train": 40, "validation": 9}, labels=lambda i: i % 5, named=False)
    assert train([*config(tmp_path, outside), "--num_classes", "3"]) == 2
    assert "label 3" in capfd.readouterr().err
    assert train(config(tmp_path, outside)) == 2
    assert "num_classes" in capfd.readouterr().err
    empty = write_splits(tmp_path / "empty", {"train": 0, "validation": 9})
    assert train(config(tmp_path, empty)) == 2
    assert "empty" in capfd.readouterr().err


@pytest.mark.slow
def test_exit_code_of_the_script(tmp_path, images):
    words = [RECIPES / "imagenet_clars.py", *config(tmp_path, images, model_name="resnet51")]
    error = run_python(*words, cwd=tmp_path, status=2).stderr
    assert [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error
