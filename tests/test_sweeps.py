"""Sweep files: which runs they ask for, what is refused, and that W&B's agents take ours and start the recipe."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from hf_clars import UserError
from hf_clars.cli import main
from hf_clars.configuration import parse
from hf_clars.experiments import Run, read_sweep
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.trainer import ClarsTrainingArguments

from .helpers.scripts import ROOT, without
from .helpers.sweeps import METHODS, TINY, command, sweep_file
from .helpers.wandb_files import offline_runs

SWEEPS = ROOT / "recipes" / "sweeps"


# ---- which runs ------------------------------------------------------------------------------------------------------


def test_a_grid_is_all_combinations_of_its_parameters(tmp_path):
    runs = read_sweep(sweep_file(tmp_path)).runs()
    assert [tuple(run.place.values()) for run in runs] == [("clars", 0), ("clars", 1), ("mgd", 0), ("mgd", 1)]
    assert [run.title for run in runs[:2]] == ["clars seed=0", "clars seed=1"]
    assert (runs[3].settings["optim"], runs[3].settings["seed"]) == ("sgd", 1)
    assert "method" not in runs[3].settings
    assert len({run.key for run in runs}) == 4
    picked = {"B": {"values": [8, 2], "choices": {2: {"eta": 1}, 4: {"eta": 2}, 8: {"eta": 3}}}}
    runs = read_sweep(sweep_file(tmp_path, parameters=picked)).runs()
    assert [(run.place["B"], run.settings["eta"]) for run in runs] == [(8, 3), (2, 1)]
    (alone,) = read_sweep(sweep_file(tmp_path, parameters={"seed": {"value": 3}, "eta": {"value": 1}})).runs()
    assert alone.title == "seed=3"


def test_a_grid_has_no_more_runs_than_its_cap(tmp_path):
    """Which are its first, whatever part is asked for."""
    sweep = read_sweep(sweep_file(tmp_path, run_cap=3))
    assert [tuple(run.place.values()) for run in sweep.runs()] == [("clars", 0), ("clars", 1), ("mgd", 0)]
    assert [tuple(run.place.values()) for run in sweep.runs({"method": ["mgd"]})] == [("mgd", 0)]
    with pytest.raises(UserError, match="none of the first 3 runs, which run_cap leaves, is one of these"):
        sweep.runs({"method": ["mgd"], "seed": ["1"]})
    assert len(read_sweep(sweep_file(tmp_path, run_cap=9)).runs()) == 4
    many = {name: {"values": list(range(30))} for name in "abc"}
    assert len(read_sweep(sweep_file(tmp_path, run_cap=5, parameters=many)).runs()) == 5


def test_a_preset_lies_over_the_file(tmp_path):
    over = {
        "settings": {"image_size": 4},
        "parameters": {"method": {"choices": {"mgd": {"eta": 9}}}, "seed": {"values": [7]}},
    }
    sweep = read_sweep(sweep_file(tmp_path, presets={"small": over, "paper": None}), "small")
    (run,) = sweep.runs({"method": ["mgd"]}, {"num_train_epochs": 5})
    assert {"image_size": 4, "seed": 7, "num_train_epochs": 5, "optim": "sgd", "eta": 9}.items() <= run.settings.items()
    assert len(read_sweep(tmp_path / "tiny.yaml", "paper").runs()) == 4


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
    sweep = read_sweep(sweep_file(tmp_path, parameters=parameters, settings=None, method="random", run_cap=40))
    runs = sweep.runs()
    assert len(runs) == len({run.key for run in runs}) == 40
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
    sweep = read_sweep(sweep_file(tmp_path, parameters=parameters, settings=None))
    assert [run.title for run in sweep.runs()] == ["a seed=1", "a seed=2", "b seed=1", "b seed=2"]
    assert [run.settings for run in sweep.runs({"seed": ["1"]}, {"image_size": 9})] == [
        {"optim": optim, "eta": 0.5, "image_size": 9, "seed": 1} for optim in ("clars", "lars")
    ]
    with pytest.raises(UserError, match="optim is what config varies"):
        sweep.runs(settings={"optim": "mnag"})


def test_words_in_front_of_the_program_launch_it(tmp_path):
    words = ["${env}", "accelerate", "launch", "--quiet", "${program}", "${args}"]
    assert read_sweep(sweep_file(tmp_path, command=words)).launch == ["accelerate", "launch", "--quiet"]
    assert read_sweep(sweep_file(tmp_path, program=None)).launch == []


def test_the_key_is_of_what_is_computed():
    def key(**settings):
        return Run({}, {**TINY, "dataset": "uoft-cs/cifar10", **settings}).key

    assert key(dataset="uoft-cs/cifar10/") == key(report_to="wandb", logging_steps=3, save_steps=9) == key()
    assert key(learning_rate="2e0", weight_decay=None) == key()  # YAML 1.1 reads 2e0 as text
    different = [
        {"seed": 1}, {"learning_rate": 2.1}, {"dataset": "uoft-cs/cifar100"}, {"dataset": "others/cifar10"},
        {"model_kwargs": {"width": 5}}, {"label_column": "coarse_label"}, {"dataset_revision": "x"}, {},
        {"gradient_variance": "train"}, {"gradient_variance": "train", "per_device_eval_batch_size": 9},
    ]  # fmt: skip
    assert len({key(**settings) for settings in different}) == len(different)
    assert key(per_device_eval_batch_size=9) == key()  # which computes the same where M_k is not measured


def test_settings_as_flags():
    run = Run({}, {"a": 1, "b": True, "c": None, "d": [1, 2.5], "e": {"x": 1}, "f": "1e-2"})
    assert run.flags() == ["--a", "1", "--b", "true", "--d", "1", "2.5", "--e", '{"x": 1}', "--f", "1e-2"]


# ---- what is refused -------------------------------------------------------------------------------------------------

DRAWN = {"method": "random", "run_cap": 2}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        *((text, ("tiny.yaml",)) for text in ("[1", "- a", "", None)),
        ({"method": "bayes"}, ("method", "'bayes'", "grid")),
        ({"method": None}, ("method",)),
        ({"early_terminate": {"type": "hyperband"}}, ("'early_terminate'",)),
        ({"metod": "grid"}, ("'metod'", "did you mean method?")),
        ({"program": "train.py"}, ("program", "'train.py'", "recipes/imagenet_clars.py")),
        ({"command": ["python", "x.py"]}, ("command", "${program}")),
        ({"command": ["${program}", "--eta", "1", "${args}"]}, ("command", "parameters")),
        ({"command": "python"}, ("command", "'python'")),
        ({"run_cap": 0}, ("run_cap", "0")),
        ({"settings": [1]}, ("settings", "[1]")),
        ({"settings": {"seed": 1}}, ("'seed'", "settings")),
        ({"presets": 3}, ("presets", "3")),
        ({"drawing": {"columns": ["x"], "rows": ["loss"]}}, ("drawing", "'x'", "method, seed")),
        ({"drawing": {"columns": ["seed"], "rows": ["los"]}}, ("drawing.rows.0", "'los'", "did you mean 'loss'?")),
        ({"parameters": []}, ("parameters", "[]")),
        ({"parameters": {}}, ("parameters",)),
        *(({"parameters": {"eta": spec}}, ("parameters.eta", *words)) for spec, words in (
            (3, ("3",)), ({}, ("value",)), ({"values": None}, ("null",)), ({"values": []}, ("values",)),
            ({"values": 3}, ("values", "3")),
            ({"values": [1, 1]}, ("twice: 1, 1",)), ({"value": None}, ("None", "flags")),
            ({"values": [[1, 2]]}, ("[1, 2]", "flags")), ({"parameters": {}}, ("parameters {}",)),
            ({"values": [1], "probabilities": [1]}, ("probabilities and values",)),
            ({"choices": {"a": {}}, "values": ["b"]}, ("'b'", "choices a")),
        )),
        ({"parameters": {"eta": {"min": 0.1, "max": 1.0}}}, ("'eta'", "distributions")),
        *(({**DRAWN, "parameters": {"eta": spec}}, ("parameters.eta", *words)) for spec, words in (
            ({"distribution": "beta"}, ("'beta'", "log_normal")), ({"min": 3, "max": 1}, ("max 1, min 3",)),
            ({"distribution": "log_uniform_values", "min": 0, "max": 1}, ("log_uniform_values", "min 0")),
            ({"min": "x", "max": 1}, ("'x'",)), ({"min": 0, "max": 1, "mu": 2}, ("mu 2",)),
            ({"distribution": "log_uniform", "min": 0, "max": 1e9}, ("max 1000000000.0",)),
            ({"distribution": "q_normal", "q": 0}, ("q 0",)), ({"distribution": "normal", "sigma": -1}, ("sigma -1",)),
        )),
        ({"parameters": {"config": {"value": "nowhere.yaml"}}}, ("--config nowhere.yaml: no such file",)),
        ({"parameters": {n: {"values": list(range(30))} for n in "abc"}}, ("27,000 runs",)),
        ({"parameters": {"a": {"choices": {"x": {"eta": 1}}}, "eta": {"values": [1, 2]}}}, ("eta is what",)),
        ({"tuning": {"search": {}, "seeds": [1], "trials": {"clars": [{}]}}}, ("tuning", "'method'")),
        ({"tuning": {"search": {}, "seeds": [1], "trials": [1]}}, ("tuning.trials", "[1]")),
        ({"tuning": {"search": {}, "seeds": [1], "trials": {"clars": [{}]}}, "run_cap": 2}, ("run_cap", "tuning")),
        ({"tuning": {"search": {}, "trials": {}}}, ("tuning.seeds",)),
    ],
)  # fmt: skip
def test_files_that_are_no_sweeps(tmp_path, sections, words):
    """The line names the file, the key and the value."""
    file = tmp_path / "tiny.yaml"
    if isinstance(sections, dict):
        sweep_file(tmp_path, **sections)
    elif sections is not None:
        file.write_text(sections)
    with pytest.raises(UserError) as error:
        read_sweep(file).runs()
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


ODD = st.sampled_from([None, True, -1, 0, 1e400, "", "x", "\x1b[31m\n", [], [[]], [None], {}, {"x": None}, {"a": [1]}])


def places(value: object, path: tuple = ()) -> list[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(found for key, v in inside for found in places(v, (*path, key)))]


WHOLE = {
    "method": "random", "run_cap": 3, "program": "recipes/imagenet_clars.py", "command": ["${program}", "${args}"],
    "settings": {"image_size": 8, "model_kwargs": {"width": 4}}, "presets": {"small": {"settings": {"image_size": 4}}},
    "parameters": {"method": {"values": ["clars"], "choices": METHODS}, "seed": {"values": [0, 1]},
                   "eta": {"distribution": "q_log_uniform_values", "min": 0.1, "max": 1.0, "q": 0.1}},
    "drawing": {"columns": ["method"], "rows": ["loss"], "lines": ["seed"]},
    "tuning": {"search": {"seed": 0}, "seeds": [1, 2], "trials": {m: [{"eta": 1}, {"eta": 2}] for m in METHODS}},
}  # fmt: skip


@given(st.sampled_from(places(WHOLE)), ODD, st.sampled_from([None, "small"]), st.sampled_from(["grid", "random"]))
def test_any_value_anywhere_is_taken_or_named_in_a_line(tmp_path_factory, path, odd, preset, method):
    content = copy.deepcopy(WHOLE) | {"method": method}
    where = content
    if method == "grid":
        del content["parameters"]["eta"], content["run_cap"]
    else:
        del content["tuning"]
    *way, last = path if path[0] in content and "eta" not in path else ("parameters", "seed", "values")
    for key in way:
        where = where[key]
    where[last] = odd
    file = tmp_path_factory.getbasetemp() / "odd.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        runs = read_sweep(file, preset).runs()
    except UserError as error:
        complaint = str(error)
        assert len(complaint.splitlines()) == 1
    else:
        assert all(run.title is not None and run.key and run.flags() for run in runs)


@pytest.mark.parametrize(
    ("flags", "sections", "message"),
    [
        (["tune"], {}, "hf-clars sweep"),
        ([], {"tuning": {"search": {"seed": 0}, "seeds": [1], "trials": {m: [{}] for m in METHODS}}}, "hf-clars tune"),
        (["--preset", "huge"], {}, "has no preset 'huge': it has none"),
        (["--only", "optim=x"], {}, "there is no axis 'optim': the axes are method, seed"),
        (["--only", "seed=3"], {}, "seed is never '3': it is 0, 1"),
        (["--only", "seed"], {}, "--only seed: write AXIS=VALUE"),
        (["--set", "=3"], {}, "--set =3: write KEY=VALUE"),
        (["--set", "x=["], {}, "--set x=[: '[' is not a value as YAML has them"),
        (["--set", "bf16=true", "bf16=false"], {}, "bf16 is set twice"),
        (["--set", "output_dir=x"], {}, "output_dir is the command's to choose"),
        (["--set", "seed=3"], {}, "seed is what seed varies"),
        (["--set", "lerning_rate=3"], {}, "unknown flag --lerning_rate; did you mean learning_rate?"),
        (["--data_dir", "/nowhere"], {}, "--data_dir /nowhere: no such folder"),
        (["--jobs", "0"], {}, "--jobs and --threads must be at least 1"),
        (["--launch", "'a"], {}, "--launch 'a: No closing quotation"),
        (["--count", "3"], {}, "--count and --seed are for sweeps with method: random"),
        (["--seed", "3"], {}, "--count and --seed are for sweeps with method: random"),
        ([], {"method": "random"}, "a random sweep is as long as you say"),
        (["--count", "0"], {"method": "random"}, "a random sweep is as long as you say"),
        ([], {"settings": {**TINY, "lerning_rate": 1}}, "clars seed=0: unknown flag --lerning_rate; did you mean"),
        ([], {"settings": {**TINY, "output_dir": "x"}}, "output_dir is the command's to choose"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(tmp_path, capsys, flags, sections, message):
    name, flags = (flags[0], flags[1:]) if flags[:1] == ["tune"] else ("sweep", flags)
    assert main(command(name, sweep_file(tmp_path, **sections), tmp_path, *flags)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_name": "resnet8_cfar"}, "has no model 'resnet8_cfar'; did you mean resnet8_cifar"),
        ({"model_kwargs": {"widht": 4}}, "timm cannot build 'resnet8_cifar' with model_kwargs={'widht': 4}: "),
        ({"model_kwargs": {"act_layer": "x"}, "model_name": "resnet10t"}, "timm cannot build 'resnet10t'"),
        ({"train_split": "train[:50%]"}, "train_split: split 'train[:50%]' is not of the form NAME"),
        ({"eval_split": "test["}, "eval_split: split 'test[' is not of the form NAME"),
        ({"dataset": "./nowhere"}, "dataset './nowhere': no such folder"),
        ({"dataset": ""}, "--dataset is empty"),
    ],
)
def test_the_last_run_is_checked_before_the_first_is_made(tmp_path, capsys, settings, message):
    whole = {**TINY, "train_split": "train", "dataset": "x"}
    well = {key: whole.pop(key) for key in settings}
    parameters = {"how": {"choices": {"well": well, "badly": settings}}}
    assert main(command("sweep", sweep_file(tmp_path, parameters=parameters, settings=whole), tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: badly: ")
    assert message in error
    assert not (tmp_path / "w").exists()


def test_a_models_name_is_checked_before_data_are_read(tmp_path, capsys):
    assert main(["train", "--dataset", "./nowhere", "--model_name", "resnet8_cfar", "--use_cpu"]) == 2
    assert "has no model 'resnet8_cfar'" in capsys.readouterr().err


def test_wandb_that_is_missing_is_said_before_the_first_run(tmp_path, fashion_mnist, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    asked = command("sweep", sweep_file(tmp_path, fashion_mnist), tmp_path, "--set", "report_to=wandb")
    assert main(asked) == 2
    assert "report_to=wandb needs wandb" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert main([*asked, "--list"]) == 0  # which a machine without it can show


def test_no_is_a_word_where_words_are_wanted(tmp_path, capsys):
    flags = ["--set", "eval_strategy=no", "bf16=no", "--list"]
    assert main(command("sweep", sweep_file(tmp_path), tmp_path, *flags)) == 0
    assert capsys.readouterr().out.count("no result") == 4


# ---- the files we ship, and W&B's agent ------------------------------------------------------------------------------

RUNS = {
    "cifar10": 15, "cifar10_8192": 42, "cifar10_8192_rates": 16, "fashion_mnist": 24, "fashion_mnist_random": 12,
    "imagenet": 18,
}  # fmt: skip


def agent_command(file: Path, chosen: dict) -> list[str]:
    """The command line of one run as W&B's agent makes it (`Agent._command_run`), with its own functions."""
    config = yaml.safe_load(file.read_text())
    values = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    values |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [config.get("program")]}
    words: list[str] = []
    for word in create_sweep_command(config.get("command")):
        macro = str(word).removeprefix("${").removesuffix("}")
        words += values[macro] if str(word).startswith("${") else [str(word)]
    return words


def some_value(spec: dict) -> object:
    return spec["value"] if "value" in spec else spec["values"][0] if "values" in spec else spec["min"]


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_wandb_takes_our_sweeps_and_the_recipe_takes_their_runs(file, monkeypatch, capsys, tmp_path):
    """The client sends the file as it is, and the server checks it against a schema, of which this is the gist."""
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(file.read_text())
    assert config["method"] in ("grid", "random")
    assert config["metric"] == {"name": "eval/accuracy", "goal": "maximize"}
    assert not {"settings", "drawing", "tuning", "presets"} & config.keys()
    assert (ROOT / config["program"]).is_file()
    for name, spec in config["parameters"].items():
        assert spec.keys() in ({"value"}, {"values"}, {"distribution", "min", "max"}), name
        for path in spec.get("values", [spec.get("value")]) if name == "config" else ():
            assert (ROOT / path).is_file()
    words = agent_command(file, {name: some_value(spec) for name, spec in config["parameters"].items()})
    assert words[0] == "/usr/bin/env"
    flags = words[words.index(config["program"]) + 1 :]
    elsewhere = [flag for flag in flags if flag.partition("=")[0] not in ("--bf16", "--use_cpu")]
    here = [*elsewhere, "--bf16=False", "--use_cpu=True"]  # whatever machine this is
    recipe, args = parse(here, RecipeArguments, ClarsTrainingArguments)
    recipe.check()
    assert (args.optim_name, args.report_to) == ("clars", ["wandb"])
    assert args.run_name in (None, "")

    assert main(["sweep", str(file), "--list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == RUNS[file.stem]
    assert all(line.endswith(": no result") for line in lines)
    if file.stem == "imagenet":
        settings = [run.settings for run in read_sweep(file).runs()]
        both = {("clars", 16384), ("lars", 16384)}
        assert {(one["optim"], one["total_batch_size"]) for one in settings} == both


@pytest.mark.slow
def test_an_agents_run_starts_the_recipe(tmp_path, fashion_mnist):
    """With the environment and the file of parameters that an agent leaves for `wandb.init`, offline."""
    file = SWEEPS / "fashion_mnist.yaml"
    config = yaml.safe_load(file.read_text())
    chosen = {name: some_value(spec) for name, spec in config["parameters"].items()}
    chosen |= {"output_dir": str(tmp_path / "out"), "max_steps": 2, "eval_examples": 64, "save_strategy": "no"}
    parameters = tmp_path / "config.yaml"
    parameters.write_text(yaml.safe_dump({name: {"value": value} for name, value in chosen.items()}))
    environment = without(
        "WANDB", WANDB_SWEEP_ID="abcdefgh", WANDB_RUN_ID="r1234567", WANDB_SWEEP_PARAM_PATH=str(parameters),
        WANDB_MODE="offline", WANDB_DIR=str(tmp_path),
    )  # fmt: skip
    words = agent_command(file, chosen)
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "r1234567" / "run.json").read_text())  # a folder for each run
    assert (record["state"], record["wandb_run_id"]) == ("finished", "r1234567")
    (written,) = offline_runs(tmp_path)
    assert (written.id, written.run["sweep_id"], written.exit_code) == ("r1234567", "abcdefgh", 0)
    assert written.run["display_name"] == "clars resnet10t B=2048 seed=0"
    assert (written.config["eta"], written.config["gamma_scale"]) == (0.01, 16)
