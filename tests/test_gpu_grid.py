"""The grid of CIFAR-10 at B = 8192 that is meant for a GPU: its order, and that each of its runs works, on this CPU."""

import json

import pytest
import torch

from hf_clars.cli import main, train
from hf_clars.experiments import Runner, read_sweep

from .helpers.recipe import RECIPES, assert_same, config, result, write_splits
from .helpers.scripts import run_python
from .helpers.sweeps import command

GRID, RATES = (RECIPES / "sweeps" / name for name in ("cifar10_8192.yaml", "cifar10_8192_rates.yaml"))
METHODS = ["clars", "lars_warmup", "lars", "mnag", "clars_subset", "clars_micro_batch", "clars_authors"]
NETWORKS = ["resnet56_cifar", "vgg11_bn_cifar"]


def test_the_most_telling_runs_come_first():
    """Each method on both networks, all methods with one seed, then the other seeds."""
    runs = read_sweep(GRID).runs()
    assert [(r.place["seed"], r.place["config"], r.place["model_name"]) for r in runs] == [
        (seed, method, network) for seed in (0, 1, 2) for method in METHODS for network in NETWORKS
    ]
    assert len({run.key for run in runs}) == len(runs) == 42


def test_methods_differ_in_what_makes_the_method():
    """And in nothing else; γ_scale, epochs and the rest are those of Fig. 1 at B = 8192."""
    runs = {r.place["config"]: r.settings for r in read_sweep(GRID).runs({"seed": ["0"], "model_name": NETWORKS[:1]})}
    its_own = {"optim", "eta", "bias_and_norm", "mode", "warmup_epochs"}
    assert len({json.dumps({k: v for k, v in s.items() if k not in its_own}) for s in runs.values()}) == 1
    assert {m: s["mode"] for m, s in runs.items() if "mode" in s} == {
        "clars": "per_sample", "clars_subset": "subset", "clars_micro_batch": "micro_batch", "clars_authors": "authors",
    }  # fmt: skip
    assert {m for m, s in runs.items() if "warmup_epochs" in s} == {"lars_warmup", "mnag"}
    figure = read_sweep(RECIPES.parent / "hf_clars" / "experiments" / "figures" / "figure1.yaml", "paper").runs(
        {"B": ["8192"]}
    )
    for run in figure:
        ours = runs[{"mnag": "mnag", "lars": "lars_warmup"}[run.place["method"]]]
        for key in (
            "total_batch_size", "per_device_train_batch_size", "base_learning_rate", "base_batch_size", "optim",
            "num_train_epochs", "warmup_epochs", "momentum", "lr_scheduler_type", "augmentation", "bias_and_norm",
        ):  # fmt: skip
            assert ours.get(key) == run.settings.get(key), key
        assert float(ours["weight_decay"]) == float(run.settings["weight_decay"])


def test_rates_take_turns_with_methods():
    places = [run.place for run in read_sweep(RATES).runs()]
    assert len(places) == 16
    assert [place["config"] for place in places] == ["clars", "lars_warmup"] * 8
    assert [place["base_learning_rate"] for place in places[::4]] == [0.5, 0.25, 1.0, 0.1]


def test_the_list_needs_no_gpu(tmp_path, capsys):
    assert main(["sweep", str(GRID), "--list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 42
    assert lines[0] == "seed=0 clars resnet56_cifar: no result"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="bf16"):
            Runner(tmp_path, tmp_path).check(read_sweep(GRID).runs({"seed": ["0"]}))


@pytest.mark.slow
def test_the_fork_server_does_not_touch_cuda():
    """CUDA cannot be used in a fork of a process that has asked it for anything, and runs are such forks."""
    code = """
import torch
asked = []
for name in ("is_available", "device_count", "init", "current_device", "get_device_properties"):
    real = getattr(torch.cuda, name)
    setattr(torch.cuda, name, lambda *a, name=name, real=real, **k: (asked.append(name), real(*a, **k))[1])
torch.cuda.is_available()
assert asked.pop() == "is_available"
import hf_clars.image_classification.recipe, hf_clars.cli, hf_clars.experiments.processes
assert not asked, asked
assert not torch.cuda.is_initialized()
"""
    run_python("-c", code)


@pytest.mark.slow
@pytest.mark.parametrize("file", [GRID, RATES], ids=lambda file: file.stem)
def test_every_run_takes_a_step_on_this_cpu(tmp_path, capsys, file):
    """Narrow networks and few images; otherwise as they are, bfloat16 and data on the device included."""
    write_splits(tmp_path / "data" / "cifar10", {"train": 64, "test": 16})
    tiny = [
        "use_cpu=true", "total_batch_size=64", "per_device_train_batch_size=32", "per_device_eval_batch_size=16",
        "max_steps=1", "model_kwargs={width: 2}", "save_steps=1", "layer_statistics_steps=1", "max_nonfinite_steps=0",
    ]  # fmt: skip
    only = ["--only", "seed=0"] if file == GRID else []
    words = command("sweep", file, tmp_path, "--jobs", "2", "--data_dir", f"{tmp_path}/data", *only, "--set", *tiny)
    assert main(words) == 0, capsys.readouterr()
    results = [json.loads(path.read_text()) for path in (tmp_path / "r" / f"sweep-{file.stem}").glob("*.json")]
    assert len(results) == (14 if file == GRID else 16)
    assert {result["state"] for result in results} == {"finished"}
    assert all(row["loss"] > 0 for result in results for row in result["curve"] if "loss" in row)
    norms = [r for r in results if r["place"]["config"] in ("clars", "clars_subset", "clars_micro_batch")]
    assert all(r["layers"] for r in norms)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["authors", "subset", "per_sample"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_were_not(tmp_path, fashion_mnist, mode):
    """In bfloat16, with data on the device: from a checkpoint amid an epoch on, the same steps bit for bit."""
    options = {
        "model_name": "resnet8_cifar", "model_kwargs": {"width": 4}, "image_size": 16, "augmentation": "random_crop",
        "data_on_device": True, "bf16": True, "optim": "clars", "mode": mode, "train_examples": 256,
        "eval_examples": 32, "eval_split": "test", "total_batch_size": 64, "per_device_train_batch_size": 16,
        "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch",
        "logging_strategy": "steps", "logging_steps": 1, "layer_statistics_steps": 1,
    }  # fmt: skip
    options |= {"norm_samples": 16} if mode == "subset" else {}
    flags = config(tmp_path, fashion_mnist, **options)
    assert train(flags) == 0
    whole = result(tmp_path)
    assert len([row for row in whole[1] if "loss" in row]) == 8
    assert train([*flags, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-3")]) == 0
    assert_same(result(tmp_path), whole)
