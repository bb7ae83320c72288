"""Sweeps: one file for `wandb sweep` and `hf-clars sweep`, run offline, and started as W&B's agent would."""

import json
import os
import pty
import subprocess
import sys
import termios
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from hf_clars import UserError
from hf_clars.cli import main
from hf_clars.configuration import parse
from hf_clars.experiments.command import settings_of
from hf_clars.experiments.sweeps import read_sweep
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.trainer import ClarsTrainingArguments

from .test_experiments import TINY
from .wandb_files import offline_runs

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))


def sweep_file(folder: Path, data: Path | str, parameters: dict | None = None, **changes) -> Path:
    """TINY as a sweep: 2 optimizers × 2 seeds."""
    fixed = {k: {"value": json.dumps(v) if isinstance(v, dict) else v} for k, v in TINY.items()}
    axes = {"optim": {"values": ["clars", "lars"]}, "seed": {"values": [0, 1]}, "dataset": {"value": str(data)}}
    content = {
        "program": "recipes/imagenet_clars.py",
        "method": "grid",
        "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "parameters": {**fixed, **axes} if parameters is None else parameters,
        **changes,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return file


def command(file: Path, *flags: str) -> list[str]:
    folder = file.parent
    return ["sweep", str(file), "--results", f"{folder}/r", "--work", f"{folder}/w", "--threads", "1", *flags]


def results_in(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "r" / "sweep-tiny").glob("*.json"))]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_is_made_once(tmp_path, fashion_mnist, capsys):
    file = sweep_file(tmp_path, fashion_mnist)
    first = command(file, "--jobs", "2", "--set", "layer_statistics_steps=2")
    assert main(first) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"0 of 4 runs have results in {tmp_path}/r/sweep-tiny"
    assert [line.split("]")[0] for line in printed[1:5]] == [f"[{n}/4" for n in range(1, 5)]
    assert sum(line.startswith("| clars | 2 |") or line.startswith("| lars | 2 |") for line in printed) == 2
    assert printed[-1] == f"hf-clars compare {tmp_path}/r/sweep-tiny"
    results = results_in(tmp_path)
    assert sorted((r["place"]["optim"], r["place"]["seed"]) for r in results) == [
        ("clars", 0), ("clars", 1), ("lars", 0), ("lars", 1),
    ]  # fmt: skip
    for result in results:  # what a comparison wants to know
        assert result["state"] == "finished"
        assert {"optim", "seed", "total_batch_size", "model_name", "learning_rate"} <= result["settings"].keys()
        assert [row["images_seen"] for row in result["curve"]] == [64, 256, 512]
        assert all(row["seconds"] > 0 for row in result["curve"])
        assert "gamma" in next(iter(result["layers"][-1]["layers"].values()))
    assert main(first) == 0  # nothing is left to do
    assert "runs have results" not in capsys.readouterr().out
    assert main([*first, "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 4


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path, fashion_mnist, capsys):
    """SIGKILL while the second run is made: the first one's result stays, the second goes on from its checkpoint."""
    file = sweep_file(tmp_path, fashion_mnist)
    flags = ["--set", "num_train_epochs=60", "save_strategy=epoch", "save_total_limit=1", "--only", "optim=clars"]
    process = subprocess.Popen([sys.executable, "-m", "hf_clars", *command(file, *flags)], stdout=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    end = time.monotonic() + 200
    while not (results_in(tmp_path) and list((tmp_path / "w").glob("clars_seed=1-*/checkpoint-*"))):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    (run,) = (tmp_path / "w").glob("clars_seed=1-*[0-9a-f]")
    end = time.monotonic() + 60
    while _locked(run):  # a run ends with whoever asked for it, or else by itself
        assert time.monotonic() < end
        time.sleep(0.2)
    assert main(command(file, *flags)) == 0
    assert "1 of 2 runs have results" in capsys.readouterr().out
    first, second = results_in(tmp_path)
    for result in (first, second):
        assert [row["epoch"] for row in result["curve"]][-1] == 60
        seconds = [row["seconds"] for row in result["curve"]]
        assert seconds == sorted(seconds)


def _locked(run: Path) -> bool:
    import filelock

    try:
        with filelock.FileLock(f"{run}.lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


@pytest.mark.slow
def test_a_random_sweep_with_offline_wandb_runs(tmp_path, fashion_mnist, monkeypatch, capsys):
    """Runs are forks that end without Python's exit: their W&B runs have an end all the same."""
    for key in [k for k in os.environ if k.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    parameters = yaml.safe_load(sweep_file(tmp_path, fashion_mnist).read_text())["parameters"]
    del parameters["optim"], parameters["seed"]
    parameters["learning_rate"] = {"distribution": "log_uniform_values", "min": 0.5, "max": 8}
    file = sweep_file(tmp_path, fashion_mnist, parameters, method="random")
    script = "import sys; from hf_clars.cli import entry; entry()"  # a fork server with this environment
    flags = command(file, "--count", "2", "--set", "report_to=wandb", "num_train_epochs=1")
    subprocess.run([sys.executable, "-c", script, *flags], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    results, written = results_in(tmp_path), offline_runs(tmp_path)
    assert {w.config["learning_rate"] for w in written} == {r["settings"]["learning_rate"] for r in results}
    assert [(w.exit_code, w.summary["diverged"]) for w in written] == [(0, False)] * 2
    assert all(w.run["project"] == "hf_clars" for w in written)


@pytest.mark.slow
def test_on_a_terminal_one_line_says_how_it_stands(tmp_path, fashion_mnist):
    file = sweep_file(tmp_path, fashion_mnist)
    terminal, ours = pty.openpty()
    termios.tcsetwinsize(ours, (24, 120))
    flags = command(file, "--only", "optim=lars", "seed=0", "--set", "num_train_epochs=1")
    process = subprocess.Popen([sys.executable, "-m", "hf_clars", *flags], stdout=ours, stderr=ours, cwd=ROOT)
    os.close(ours)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    assert process.wait() == 0
    text = shown.decode()
    assert "0 of 1 runs done, 0 failed, 1 running (lars seed=0); 00:0" in text
    assert "[1/1] lars seed=0: " in text


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_random_sweep_is_a_sequence_of_draws(tmp_path):
    parameters = {
        "optim": {"values": ["clars", "lars"]},
        "eta": {"distribution": "log_uniform_values", "min": "1e-4", "max": 1e-1},
        "weight_decay": {"min": 0.0, "max": 1.0},
        "warmup_steps": {"min": 0, "max": 5},
        "learning_rate": {"distribution": "q_uniform", "min": 0, "max": 8, "q": 2},
        "momentum": {"distribution": "normal", "mu": 0.9, "sigma": 0.01},
        "seed": {"value": 3},
    }
    sweep = read_sweep(sweep_file(tmp_path, "x", parameters, method="random", run_cap=40))
    runs = sweep.runs()
    assert len(runs) == 40
    assert len({run.key for run in runs}) == 40
    assert sweep.runs(count=60)[:40] == runs != sweep.runs(seed=1)
    values = {name: [run.settings[name] for run in runs] for name in parameters}
    assert set(values["optim"]) == {"clars", "lars"}
    assert 1e-4 <= min(values["eta"]) < 1e-3 < 1e-2 < max(values["eta"]) <= 1e-1
    assert 0 <= min(values["weight_decay"]) < 0.3 < 0.7 < max(values["weight_decay"]) <= 1
    assert set(values["warmup_steps"]) == set(range(6))
    assert set(values["learning_rate"]) <= {0, 2, 4, 6, 8}
    assert all(0.8 < value < 1 for value in values["momentum"])
    assert runs[0].place.keys() == {"optim", "eta", "weight_decay", "warmup_steps", "learning_rate", "momentum"}
    assert sweep.runs({"optim": ["lars"]}, {"num_train_epochs": 2})[0].settings["num_train_epochs"] == 2


def test_a_config_is_read_and_the_sweeps_own_settings_win(tmp_path):
    for name, text in (("a", "optim: clars\neta: 0.01\nimage_size: 8"), ("b", "optim: lars\nimage_size: 8")):
        (tmp_path / f"{name}.yaml").write_text(text)
    parameters = {
        "config": {"values": [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]},
        "eta": {"value": 0.5},
        "seed": {"values": [1, 2]},
        "report_to": {"value": "wandb"},
        "output_dir": {"value": "there"},
    }
    grid = read_sweep(sweep_file(tmp_path, "x", parameters)).grid
    assert [run.title for run in grid.runs()] == ["a seed=1", "a seed=2", "b seed=1", "b seed=2"]
    assert [run.settings for run in grid.runs({"seed": ["1"]}, {"image_size": 9})] == [
        {"optim": optim, "eta": 0.5, "image_size": 9, "seed": 1} for optim in ("clars", "lars")
    ]
    with pytest.raises(UserError, match="optim is what the grid's axes vary"):
        grid.runs(settings={"optim": "mnag"})


def test_words_of_the_command_are_kept(tmp_path):
    words = ["${env}", "accelerate", "launch", "--quiet", "${program}", "--bf16", "true", "--eta=0.5", "${args}"]
    sweep = read_sweep(sweep_file(tmp_path, "x", {"seed": {"values": [1, 2]}}, command=words))
    assert sweep.launch == ["accelerate", "launch", "--quiet"]
    assert sweep.runs()[0].settings == {"bf16": "true", "eta": "0.5", "seed": 1}
    words = ["${env}", "hf-clars", "train", "${args_no_equals}"]
    assert read_sweep(sweep_file(tmp_path, "x", {"seed": {"value": 1}}, command=words, program=None)).launch == []


SEED = {"seed": {"values": [0, 1]}}


@pytest.mark.parametrize(
    ("parameters", "changes", "flags", "message"),
    [
        ([], {}, [], "needs parameters: name → value, values or a distribution"),
        ({}, {}, [], "needs parameters: name → value"),
        (None, {"method": "bayes"}, [], "has method 'bayes': `hf-clars sweep` cannot do that, `wandb sweep` can"),
        (None, {"method": None}, [], "has method None, which must be grid or random"),
        (None, {"early_terminate": {"type": "hyperband"}}, [], "has 'early_terminate': `hf-clars sweep` can"),
        (None, {"metod": "grid"}, [], "unknown key 'metod'; did you mean method?"),
        (None, {"program": "train.py"}, [], "program 'train.py' is not our recipe, recipes/imagenet_clars.py"),
        (None, {"program": None}, [], "program None is not our recipe"),
        (None, {"command": ["python", "x.py"]}, [], "command has neither ${program} nor hf-clars train"),
        (None, {"command": ["${program}"]}, [], "command must end in ${args}"),
        (None, {"command": ["${program}", "x", "${args}"]}, [], "command has 'x' after the program: write --key value"),
        (None, {"command": "python"}, [], "command must be a list of words, not 'python'"),
        (None, {"run_cap": 0}, [], "run_cap must be a whole number of at least 1, not 0"),
        ({"seed": {"values": []}}, {}, [], "parameter 'seed': values must be a list with something in it, not []"),
        ({"seed": {"values": 3}}, {}, [], "parameter 'seed': values must be a list with something in it, not 3"),
        ({"seed": {"values": [1, 1]}}, {}, [], "parameter 'seed': it has a value twice: 1, 1"),
        ({"seed": {"value": None}}, {}, [], "parameter 'seed': None is nothing that W&B's flags can say"),
        ({"lr_milestones": {"value": [1, 2]}}, {}, [], "[1, 2] is nothing that W&B's flags can say"),
        ({"seed": 3}, {}, [], "parameter 'seed': write value: …, values: […] or a distribution, not 3"),
        ({"seed": {}}, {}, [], "parameter 'seed': it has no value, no values and no distribution"),
        ({"a": {"parameters": {}}}, {}, [], "parameter 'a': it is nested: `hf-clars sweep` cannot do that"),
        ({"seed": {"values": [1], "probabilities": [1]}}, {}, [], "parameter 'seed': it has probabilities"),
        ({"eta": {"min": 0.1, "max": 1.0}}, {}, [], "'eta': a grid has values, and no distribution 'uniform'"),
        ({"eta": {"distribution": "beta"}}, {"method": "random"}, [], "distribution 'beta' cannot be drawn from here"),
        ({"eta": {"min": 3, "max": 1}}, {"method": "random"}, [], "parameter 'eta': min 3 is above max 1"),
        ({"eta": {"distribution": "log_uniform_values", "min": 0, "max": 1}}, {"method": "random"}, [],
         "log_uniform_values needs 'min' above 0, not 0"),
        ({"eta": {"min": "x", "max": 1}}, {"method": "random"}, [], "uniform needs a number for 'min', not 'x'"),
        (SEED, {"method": "random"}, [], "a random sweep is as long as you say: --count 20, or run_cap"),
        (SEED, {"method": "random"}, ["--count", "0"], "a random sweep is as long as you say"),
        (SEED, {}, ["--count", "3"], "--count 3 is for sweeps with method: random"),
        ({"eta": {"min": 0.1, "max": 1.0}}, {"method": "random"}, ["--count", "1", "--set", "eta=2"],
         "eta is what the sweep draws"),
        ({"config": {"value": "nowhere.yaml"}}, {}, [], "--config nowhere.yaml: no such file"),
        ({**SEED, "lerning_rate": {"value": 1}}, {}, [], "seed=0: unknown flag --lerning_rate; did you mean"),
        (SEED, {}, ["--only", "optim=x"], "there is no axis 'optim': the axes are seed"),
        (SEED, {}, ["--jobs", "0"], "--jobs and --threads must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, capsys, parameters, changes, flags, message):
    file = sweep_file(tmp_path, "x", parameters, **changes)
    assert main(command(file, *flags)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "w").exists()


def test_wandb_that_is_missing_is_said_before_the_first_run(tmp_path, fashion_mnist, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = sweep_file(tmp_path, fashion_mnist)
    assert main(command(file, "--set", "report_to=wandb")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("report_to=wandb needs wandb: pip install wandb, or go without")
    assert not (tmp_path / "w").exists()
    assert main(command(file, "--list", "--set", "report_to=wandb")) == 0  # which a machine without it can show


def test_no_is_a_word_where_words_are_wanted():
    said = settings_of(Namespace(set=["eval_strategy=no", "bf16=no", "save_strategy='no'"]))
    assert said == {"eval_strategy": "no", "bf16": False, "save_strategy": "no"}


@pytest.mark.parametrize("text", ["[1", "- a", "", None])
def test_files_that_are_no_sweeps(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "tiny.yaml").write_text(text)
    assert main(command(tmp_path / "tiny.yaml")) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/tiny.yaml")


# ---- the files we ship, and W&B's agent ------------------------------------------------------------------------------


def agent_command(file: Path, chosen: dict) -> list[str]:
    """The command line of one run as W&B's agent makes it (`Agent._command_run`), with its own functions."""
    config = yaml.safe_load(file.read_text())
    template = create_sweep_command(config.get("command"))
    values = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    values |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [config.get("program")]}
    words: list[str] = []
    for word in template:
        macro = str(word).removeprefix("${").removesuffix("}")
        words += values[macro] if str(word).startswith("${") else [str(word)]
    return words


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_our_sweeps_are_what_wandb_takes_and_the_recipe_takes_what_its_agents_say(file, monkeypatch):
    """The client sends the file as it is, and the server checks it against a schema, of which this is the gist."""
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(file.read_text())
    assert config["method"] in ("grid", "random")
    assert config["metric"] == {"name": "eval/accuracy", "goal": "maximize"}
    assert (ROOT / config["program"]).is_file()
    for name, spec in config["parameters"].items():
        assert spec.keys() in ({"value"}, {"values"}, {"distribution", "min", "max"}), name
        for path in spec.get("values", [spec.get("value")]) if name == "config" else ():
            assert (ROOT / path).is_file()
    words = agent_command(file, {name: _some_value(spec) for name, spec in config["parameters"].items()})
    assert words[0] == "/usr/bin/env"
    flags = words[words.index(config["program"]) + 1 :]
    recipe, args = parse([*flags, "--bf16=False", "--use_cpu=True"], RecipeArguments, ClarsTrainingArguments)
    recipe.check()
    assert args.optim_name == "clars"
    assert args.report_to == ["wandb"]
    assert args.run_name in (None, "")


def _some_value(spec: dict) -> object:
    return spec["value"] if "value" in spec else spec["values"][0] if "values" in spec else spec["min"]


@pytest.mark.parametrize("name", [file.stem for file in SWEEPS])
def test_the_recipe_takes_every_run_of_our_sweeps(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    file = ROOT / "recipes" / "sweeps" / f"{name}.yaml"
    assert main(["sweep", str(file), "--list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {
        "cifar10": 15, "cifar10_8192": 42, "cifar10_8192_rates": 16, "fashion_mnist": 24, "fashion_mnist_random": 12,
        "imagenet": 18,
    }  # fmt: skip
    assert len(lines) == expected[name]
    assert all(line.endswith(": no result") for line in lines)


def test_the_imagenet_sweep_is_of_both_optimizers():
    runs = read_sweep(ROOT / "recipes" / "sweeps" / "imagenet.yaml").runs()
    assert len(runs) == 18
    assert {run.settings["optim"] for run in runs} == {"clars", "lars"}
    assert {run.settings["total_batch_size"] for run in runs} == {16384}


@pytest.mark.slow
def test_an_agents_run_starts_the_recipe(tmp_path, fashion_mnist):
    """With the environment and the file of parameters that an agent leaves for `wandb.init`, offline."""
    file = ROOT / "recipes" / "sweeps" / "fashion_mnist.yaml"
    config = yaml.safe_load(file.read_text())
    chosen = {name: _some_value(spec) for name, spec in config["parameters"].items()}
    chosen |= {"output_dir": str(tmp_path / "out"), "max_steps": 2, "eval_examples": 64, "save_strategy": "no"}
    parameters = tmp_path / "config.yaml"
    parameters.write_text(yaml.safe_dump({name: {"value": value} for name, value in chosen.items()}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {
        "WANDB_SWEEP_ID": "abcdefgh", "WANDB_RUN_ID": "r1234567", "WANDB_SWEEP_PARAM_PATH": str(parameters),
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = agent_command(file, chosen)
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "r1234567" / "run.json").read_text())  # a folder for each run
    assert (record["state"], record["wandb_run_id"]) == ("finished", "r1234567")
    (written,) = offline_runs(tmp_path)
    assert (written.id, written.run["sweep_id"], written.exit_code) == ("r1234567", "abcdefgh", 0)
    assert written.run["display_name"] == "clars resnet10t B=2048 seed=0"
    assert (written.config["eta"], written.config["gamma_scale"]) == (0.01, 16)
