"""The paper's figures: grids with its settings, runs that fill them, pictures with what belongs on them."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import hf_clars
from hf_clars import ClarsTrainingArguments, UserError
from hf_clars.cli import main
from hf_clars.configuration import parse
from hf_clars.experiments import Result, Run, Runner, read_grid
from hf_clars.experiments.grid import HOUSEKEEPING
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.image_classification.data import open_data
from hf_clars.image_classification.recipe import run as train
from hf_clars.paper.drawing import DRAWINGS
from hf_clars.statistics.variance import gradient_variance

from .test_recipe import write_parquet

ROOT = Path(__file__).resolve().parents[1]
FIGURES = Path(hf_clars.__file__).parent / "paper"


def runs_of(number: int, preset: str) -> list[Run]:
    return read_grid(FIGURES / f"figure{number}.yaml", preset).runs()


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
    assert {r.settings["total_batch_size"] for r in first} == {128, 256, 512, 1024, 2048, 4096, 8192}
    assert {r.settings["model_name"] for r in first} == {"resnet56_cifar", "vgg11_bn_cifar"}
    assert all((r.settings["base_learning_rate"], r.settings["base_batch_size"]) == (0.1, 128) for r in first)
    assert {r.settings["optim"]: r.settings.get("eta") for r in first} == {"mnag": None, "lars": "1e-3"}

    epochs = {r.settings["model_name"]: r.settings["num_train_epochs"] for r in second}
    assert epochs == {"fcn5_sigmoid": 10, "cnn5_sigmoid": 10, "resnet8_cifar": 6}
    assert all(r.settings["total_batch_size"] == 128 and r.settings["learning_rate"] == 0.001 for r in second)
    assert all(r.settings["optim"] == "mnag" and r.settings["lr_scheduler_type"] == "constant" for r in second)

    assert all(r.settings["total_batch_size"] == 8192 and r.settings["num_train_epochs"] == 200 for r in third)
    assert all(r.settings["learning_rate"] == 1.0 and r.settings["lr_milestones"] == [60, 120, 150] for r in third)
    help_for = {"warmup": "warmup_epochs", "fc_freeze": "freeze_fc_epochs", "clars": "layerwise_epochs"}
    help_for["clars_eta_0.1"] = "layerwise_epochs"
    assert all(r.settings[help_for[r.place["method"]]] == 20 for r in third if r.place["method"] in help_for)

    assert all(r.settings["total_batch_size"] == 16384 for r in fourth)
    assert {(r.place["network"], r.settings["learning_rate"], r.settings["num_train_epochs"]) for r in fourth} == {
        ("resnet50", 25.0, 90),
        ("densenet121", 25.0, 90),
        ("mobilenetv2_100", 6.0, 150),
    }
    assert {r.settings["optim"]: r.settings["eta"] for r in fourth} == {"lars": "1e-3", "clars": "1e-2"}


def test_figure_4_is_what_the_recipes_launch():
    for run in runs_of(4, "paper"):
        file = ROOT / "recipes" / "imagenet" / f"{run.place['network']}_{run.place['method']}.yaml"
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


@pytest.mark.parametrize(("number", "panels"), [(1, 6), (2, 4), (3, 2), (4, 6)])
def test_pictures_have_a_line_for_each_method_and_network(number, panels):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = runs_of(number, "paper")
    seeds = [Run({**run.place, "seed": seed}, run.settings) for run in runs for seed in (0, 1)]
    figure = DRAWINGS[number]([(run, fabricated(run, run.place["seed"])) for run in (runs if number == 2 else seeds)])
    assert len(figure.axes) == panels
    for axis in figure.axes:
        lines = [line for line in axis.lines if line.get_marker() == "None"]
        expected = {1: 7 * 2, 2: 3, 3: 5, 4: 2}[number]
        assert len(lines) == expected
        assert axis.get_xlabel() == "epoch"
    if number == 1:
        assert any(line.get_marker() == "x" for line in figure.axes[0].lines)  # where mNAG diverged
    plt.close(figure)


def test_the_figure_command_from_nothing_to_a_picture(tmp_path, fashion_mnist, capsys):
    """Fig. 3 on the bundled images; a second call runs nothing."""
    command = [
        "figure", "3", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--jobs", "2", "--threads", "1",
        "--only", "network=resnet8_cifar", "--set", f"dataset={fashion_mnist}", "image_size=8", "train_examples=256",
        "eval_examples=64", "total_batch_size=64", "per_device_train_batch_size=64", "num_train_epochs=3",
        "lr_milestones=[1,2]", "model_kwargs={width: 4}",
    ]  # fmt: skip
    assert main([*command, "--list"]) == 0
    assert capsys.readouterr().out.count("no result") == 5
    assert main(command) == 0
    folder = tmp_path / "r" / "figure3" / "small"
    assert (folder / "figure3.png").stat().st_size > 1000
    assert "<svg" in (folder / "figure3.svg").read_text()
    assert len(list(folder.glob("*.json"))) == 5
    capsys.readouterr()
    assert main([*command, "--draw"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| resnet8_cifar |") == 5
    assert main([*command, "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3", "--preset", "huge"], "has no preset 'huge': it has paper, small"),
        (["3", "--only", "method"], "--only method: write AXIS=VALUE"),
        (["3", "--only", "method=adam"], "method is never 'adam'"),
        (["3", "--set", "=3"], "--set =3: write KEY=VALUE"),
        (["3", "--set", "lerning_rate=3"], "unknown flag --lerning_rate; did you mean learning_rate?"),
        (["3", "--data_dir", "/nowhere"], "--data_dir /nowhere: no such folder"),
        (["3", "--jobs", "0"], "--jobs and --threads must be at least 1"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    assert main(["figure", *arguments, "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


# ---- Fig. 2's measurements -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_m_k_is_measured_over_all_training_images(tmp_path, fashion_mnist, mode, on_device):
    """Before the training and after each epoch, of the model as it then is; the training does not notice."""
    flags = [
        "--model_name", "resnet8_cifar", "--model_kwargs", '{"width": 4}', "--dataset", str(fashion_mnist),
        "--train_split", "train[:500]", "--eval_split", "test", "--eval_examples", "64", "--image_size", "8",
        "--augmentation", "flip", "--eval_crop", "1.0", "--total_batch_size", "125", "--per_device_train_batch_size",
        "125", "--per_device_eval_batch_size", "100", "--num_train_epochs", "2", "--optim", "clars", "--learning_rate",
        "2", "--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--plots", "false",
        "--data_on_device", str(on_device), "--disable_tqdm", "true",
    ]  # fmt: skip
    train([*flags, "--output_dir", str(tmp_path / "with"), "--gradient_variance", mode])
    train([*flags, "--output_dir", str(tmp_path / "without")])
    models = [hf_clars.TimmForImageClassification.from_pretrained(tmp_path / name) for name in ("with", "without")]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)

    records = [json.loads(line) for line in (tmp_path / "with" / "gradient_variance.jsonl").read_text().splitlines()]
    assert [(record["step"], record["mode"]) for record in records] == [(0, mode), (4, mode), (8, mode)]
    source = hf_clars.data.open_source(str(fashion_mnist), "train[:500]")
    collator = hf_clars.data.ImageCollator(hf_clars.data.train_transform(8, "none"), 10, training=False)
    table = source.table()
    batches = [collator([table[i] for i in range(start, start + 100)]) for start in range(0, 500, 100)]
    model = models[0].train(mode == "train")
    expected = gradient_variance(
        model,
        [(batch["pixel_values"], batch["labels"]) for batch in batches],
        lambda outputs, labels: torch.nn.functional.cross_entropy(outputs.logits, labels),
    )
    assert {name: entry["variance_factor"] for name, entry in records[-1]["layers"].items()} == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_measuring_draws_no_random_number_of_the_training(tmp_path, fashion_mnist, mode):
    """With dropout, whose masks would be others."""
    flags = [
        "--model_name", "vgg11_bn_cifar", "--model_kwargs", '{"width": 4}', "--dataset", str(fashion_mnist),
        "--train_split", "train[:64]", "--eval_split", "test", "--eval_examples", "8", "--image_size", "8",
        "--augmentation", "flip", "--total_batch_size", "32", "--per_device_train_batch_size", "32",
        "--num_train_epochs", "2", "--learning_rate", "2", "--use_cpu", "true", "--report_to", "none",
        "--save_strategy", "no", "--plots", "false", "--disable_tqdm", "true",
    ]  # fmt: skip
    metrics = [
        train([*flags, "--output_dir", str(tmp_path / name), "--gradient_variance", name]) for name in ("none", mode)
    ]
    assert metrics[0]["train_loss"] == metrics[1]["train_loss"]


@pytest.mark.parametrize("on_device", [True, False])
def test_m_k_is_of_the_images_that_can_be_used(tmp_path, on_device):
    """Three of 72 are cut short; `train_examples` shortens epochs, not what is measured."""
    write_parquet(tmp_path / "data", {"train": 72, "validation": 8}, broken=(3, 50, 71))
    recipe, args = parse(
        ["--dataset", str(tmp_path / "data"), "--image_size", "16", "--augmentation", "flip", "--use_cpu", "true",
         "--train_examples", "32", "--total_batch_size", "32", "--per_device_train_batch_size", "32",
         "--data_on_device", str(on_device), "--max_skipped_share", "0.1", "--output_dir", str(tmp_path / "run")],
        RecipeArguments, ClarsTrainingArguments,
    )  # fmt: skip
    batches = open_data(recipe, args).plain_batches(10)
    for _ in range(2):
        images = torch.cat([batch["pixel_values"] for batch in batches])
        assert images.shape == (69, 3, 16, 16)
        assert (images.float().mean((1, 2, 3)) > 0).all()  # none of them is black


def test_an_unknown_variance_mode_is_refused(tmp_path, fashion_mnist):
    with pytest.raises(UserError, match="gradient_variance='x' is unknown; choose one of none, eval, train"):
        train(["--dataset", str(fashion_mnist), "--gradient_variance", "x", "--output_dir", str(tmp_path),
               "--use_cpu", "true"])  # fmt: skip
