"""The paper's figures: sweeps with its settings, runs that fill them, pictures with what belongs on them."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from hf_clars import TimmForImageClassification, UserError
from hf_clars.cli import main
from hf_clars.configuration import parse
from hf_clars.data import ImageCollator, open_source, train_transform
from hf_clars.experiments import Result, Run, Runner, read_sweep
from hf_clars.experiments.drawing import draw
from hf_clars.experiments.results import left_in
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.image_classification.data import open_data
from hf_clars.image_classification.panels import need_matplotlib
from hf_clars.image_classification.recipe import run as train
from hf_clars.runtime.provenance import HOUSEKEEPING
from hf_clars.statistics.variance import gradient_variance
from hf_clars.trainer import ClarsTrainingArguments

from .helpers.recipe import RECIPES, ROOT, assert_same, config, result, write_splits
from .helpers.sweeps import STAND_IN, command

FIGURES = ROOT / "hf_clars" / "experiments" / "figures"


def runs_of(number: int, preset: str) -> list[Run]:
    return read_sweep(FIGURES / f"figure{number}.yaml", preset).runs()


def settings_of(runs: list[Run], *keys: str) -> set:
    """The values that these settings have in some run: one of them, or several together."""
    found = {tuple(run.settings.get(key) for key in keys) for run in runs}
    return {values[0] for values in found} if len(keys) == 1 else found


@pytest.mark.parametrize("preset", ["paper", "small"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_recipe_takes_the_settings_of_every_run(tmp_path, number, preset):
    runs = runs_of(number, preset)
    cpu = [Run(run.place, {**run.settings, "use_cpu": True, "bf16": False}) for run in runs]
    Runner(tmp_path, tmp_path).check(cpu)
    assert len({run.key for run in runs}) == len(runs)


def test_the_papers_settings():
    """What the paper states, read off the grids: Fig. 1-4."""
    first, second, third, fourth = (runs_of(number, "paper") for number in (1, 2, 3, 4))
    assert settings_of(first, "total_batch_size") == {128, 256, 512, 1024, 2048, 4096, 8192}
    assert settings_of(first, "model_name") == {"resnet56_cifar", "vgg11_bn_cifar"}
    assert settings_of(first, "base_learning_rate", "base_batch_size") == {(0.1, 128)}
    assert settings_of(first, "optim", "eta") == {("mnag", None), ("lars", "1e-3")}

    epochs = {("fcn5_sigmoid", 10), ("cnn5_sigmoid", 10), ("resnet8_cifar", 6)}
    assert settings_of(second, "model_name", "num_train_epochs") == epochs
    assert settings_of(second, "total_batch_size", "learning_rate") == {(128, 0.001)}
    assert settings_of(second, "optim", "lr_scheduler_type") == {("mnag", "constant")}

    assert settings_of(third, "total_batch_size", "num_train_epochs", "learning_rate") == {(8192, 200, 1.0)}
    assert all(run.settings["lr_milestones"] == [60, 120, 150] for run in third)
    help_for = {"warmup": "warmup_epochs", "fc_freeze": "freeze_fc_epochs", "clars": "layerwise_epochs"}
    help_for["clars_eta_0.1"] = "layerwise_epochs"
    assert {r.settings[help_for[r.place["method"]]] for r in third if r.place["method"] in help_for} == {20}

    assert settings_of(fourth, "total_batch_size") == {16384}
    assert {(r.place["network"], r.settings["learning_rate"], r.settings["num_train_epochs"]) for r in fourth} == {
        ("resnet50", 25.0, 90), ("densenet121", 25.0, 90), ("mobilenetv2_100", 6.0, 150),
    }  # fmt: skip
    assert settings_of(fourth, "optim", "eta") == {("lars", "1e-3"), ("clars", "1e-2")}
    for run in fourth:  # and they are what the recipes launch
        file = RECIPES / "imagenet" / f"{run.place['network']}_{run.place['method']}.yaml"
        launched = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k not in HOUSEKEEPING}
        ours = {k: v for k, v in run.settings.items() if k not in HOUSEKEEPING and k != "seed"}
        assert Run({}, launched).key == Run({}, ours).key, file.name


def fabricated(run: Run, seed: int) -> Result:
    epochs = range(1, 4)
    diverged = run.place.get("method") == "mnag"
    return Result(
        place=dict(run.place), settings=dict(run.settings), state="diverged" if diverged else "finished", seconds=1.0,
        commit="abc", hardware={}, final={} if diverged else {"eval_accuracy": 0.5 + seed / 100},
        curve=[{"step": e, "epoch": e, "loss": 2.0 / e, "eval_accuracy": e / 10, "learning_rate": 1.0} for e in epochs],
        variances=[{"epoch": e, "layers": {f"timm_model.layer{k}.weight": {"variance_factor": 1.0 + e + k}
                                           for k in range(3)}} for e in (0, *epochs)],
    )  # fmt: skip


@pytest.mark.parametrize(("number", "panels", "lines"), [(1, 6, 14), (2, 4, 3), (3, 2, 5), (4, 6, 2)])
def test_pictures_have_a_line_for_each_method_and_network(number, panels, lines):
    from matplotlib import pyplot as plt

    need_matplotlib()
    sweep = read_sweep(FIGURES / f"figure{number}.yaml", "paper")
    runs = [(Run({**run.place, "seed": seed}, run.settings), seed) for run in sweep.runs() for seed in (0, 1)]
    figure = draw(sweep.drawing, [(run, fabricated(run, seed)) for run, seed in runs])
    assert len(figure.axes) == panels
    for axis in figure.axes:
        assert len([line for line in axis.lines if line.get_marker() != "x"]) == lines
        assert axis.get_xlabel() == "epoch"
    if number == 1:
        titles = [axis.get_title() for axis in figure.axes[::2]]
        assert titles == [f"resnet56_cifar: {what}" for what in ("training loss", "test accuracy", "γ_scale")]
        assert figure.axes[2].yaxis.get_major_formatter()(0.5).endswith(" %")
        trained = [(run, replace(fabricated(run, 0), curve=[{"step": 1, "epoch": 1, "loss": 2.0}])) for run, _ in runs]
        loss, _, accuracy, *_ = draw(sweep.drawing, trained).axes
        assert [text.get_text() for text in accuracy.texts] == ["no evaluation was logged"]
        assert list(loss.get_xticks()) == [1]
        assert "." in {line.get_marker() for line in loss.lines}
        drawn = figure.axes[0].lines
        assert any(line.get_marker() == "x" for line in drawn)  # where mNAG diverged
        styles = {(line.get_color(), line.get_linestyle()) for line in drawn if line.get_marker() == "None"}
        assert len(styles) == lines
    if number == 2:
        assert all(len(axis.get_legend().get_texts()) == 3 for axis in figure.axes)
        names = [f"timm_model.layer{k}.weight" for k in range(60)]
        deep = [{"epoch": e, "layers": {name: {"variance_factor": 2.0} for name in names}} for e in (0, 1)]
        pictured = draw(sweep.drawing, [(run, replace(fabricated(run, 0), variances=deep)) for run in sweep.runs()])
        assert [axis.get_ylabel() for axis in pictured.axes[4:]] == ["60 layers, input → output"] * 4
        assert all(axis.get_legend() is None for axis in pictured.axes)
        without = [(run, replace(fabricated(run, 0), variances=[])) for run in sweep.runs()]
        with pytest.raises(UserError, match="no result has M_k: its runs need gradient_variance"):
            draw(sweep.drawing, without)
    plt.close("all")


def test_the_figure_command_from_nothing_to_a_picture(tmp_path, capsys):
    """A second call runs nothing, and `--draw` needs no more than results."""
    asked = command("figure", "3", tmp_path, "--only", "network=resnet8_cifar", "--jobs", "2")
    assert main([*asked, "--list"]) == 0
    assert capsys.readouterr().out.count("no result") == 5
    assert main([*asked, "--launch", " ".join(STAND_IN)]) == 0
    folder = tmp_path / "r" / "figure3" / "small"
    assert (folder / "figure3.png").stat().st_size > 1000
    assert "<svg" in (folder / "figure3.svg").read_text()
    assert len(list(folder.glob("*.json"))) == 5
    capsys.readouterr()
    assert main([*asked, "--draw"]) == 0
    assert capsys.readouterr().out.count("| resnet8_cifar |") == 5
    assert main([*asked, "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 5


# ---- Fig. 2's measurements -------------------------------------------------------------------------------------------

DROPOUT = "vgg11_bn_cifar"  # whose masks would be others if measuring drew random numbers
CASES = [("resnet8_cifar", "eval", True), ("resnet8_cifar", "train", False), (DROPOUT, "train", False)]
MORE = [("resnet8_cifar", "eval", False), ("resnet8_cifar", "train", True), (DROPOUT, "eval", True)]


@pytest.mark.parametrize(
    ("network", "mode", "on_device"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_m_k_is_measured_over_all_training_images(tmp_path, images, network, mode, on_device):
    """Before the training and after each epoch, of the model as it then is; the training does not notice."""
    options = {
        "model_name": network, "model_kwargs": {"width": 4}, "image_size": 8, "total_batch_size": 24,
        "per_device_train_batch_size": 24, "per_device_eval_batch_size": 24, "data_on_device": on_device,
    }  # fmt: skip
    for folder, measured in (("with", mode), ("without", "none")):
        train(config(tmp_path / folder, images, **options, gradient_variance=measured))
    assert_same(result(tmp_path / "with"), result(tmp_path / "without"))

    lines = (tmp_path / "with" / "run" / "gradient_variance.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["step"], record["mode"]) for record in records] == [(0, mode), (3, mode), (6, mode)]
    if network == DROPOUT:
        return
    collator = ImageCollator(train_transform(8, "none"), 3, training=False)
    table = open_source(str(images), "train").table()
    batches = [collator([table[i] for i in range(start, start + 24)]) for start in range(0, 72, 24)]
    expected = gradient_variance(
        TimmForImageClassification.from_pretrained(tmp_path / "with" / "run").train(mode == "train"),
        [(batch["pixel_values"], batch["labels"]) for batch in batches],
        lambda outputs, labels: torch.nn.functional.cross_entropy(outputs.logits, labels),
    )
    assert {name: entry["variance_factor"] for name, entry in records[-1]["layers"].items()} == pytest.approx(expected)


def test_noise_is_measured_with_any_optimizer(tmp_path, images):
    options = {"model_name": "resnet8_cifar", "model_kwargs": {"width": 4}, "image_size": 8, "optim": "mnag"}
    train(config(tmp_path, images, **options, gradient_statistics_steps=2))
    found = left_in(tmp_path / "run", diverged=False)["gradients"]
    assert [record["step"] for record in found] == list(range(2, found[-1]["step"] + 1, 2))
    assert all(layer["gradient_variance_factor"] >= 1 for layer in found[-1]["layers"].values())
    assert len(found[-1]["layers"]) == 8


@pytest.mark.parametrize("on_device", [True, False])
def test_m_k_is_of_the_images_that_can_be_used(tmp_path, on_device):
    """Three of 72 are cut short; `train_examples` shortens epochs, not what is measured."""
    write_splits(tmp_path / "data", {"train": 72, "validation": 8}, broken=(3, 50, 71))
    options = {"train_examples": 32, "per_device_train_batch_size": 32, "data_on_device": on_device}
    flags = config(tmp_path, tmp_path / "data", **options, max_skipped_share=0.1)
    batches = open_data(*parse(flags, RecipeArguments, ClarsTrainingArguments)).plain_batches(10)
    for _ in range(2):
        pictures = torch.cat([batch["pixel_values"] for batch in batches])
        assert pictures.shape == (69, 3, 16, 16)
        assert (pictures.float().mean((1, 2, 3)) > 0).all()  # none of them is black


def test_an_unknown_variance_mode_is_refused(tmp_path, images):
    with pytest.raises(UserError, match="gradient_variance='x' is unknown; choose one of none, eval, train"):
        train(config(tmp_path, images, gradient_variance="x"))
