"""Cases of the fuzz: command lines, YAMLs, sweeps, grids and run folders, each with something wrong or odd in it."""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.theory.command import RatesArguments
from hf_clars.trainer import ClarsTrainingArguments

FASHION = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "fashion_mnist"
TINY: dict[str, Any] = {
    "model_name": "resnet8_cifar", "model_kwargs": {"width": 4}, "dataset": str(FASHION), "train_split": "train[:80]",
    "eval_split": "test[:16]", "image_size": 8, "augmentation": "flip", "total_batch_size": 32,
    "per_device_train_batch_size": 8, "num_train_epochs": 1, "use_cpu": True, "report_to": "none",
    "save_strategy": "no", "plots": False, "disable_tqdm": True,
}  # fmt: skip
SETTINGS = [f.name for kind in (RecipeArguments, ClarsTrainingArguments) for f in fields(kind) if f.init]
OPTIMIZERS = ("clars", "lars", "mnag", "adascale", "lamb", "sgd", "adamw_torch", "adafactor", "adagrad", "rmsprop",
              "lomo", "galore_adamw", "adamw_bnb_8bit", "schedule_free_sgd", "clarz")  # fmt: skip

# As text of a flag; some are sensible for some settings.
WORDS = ("", " ", "0", "1", "-1", "2", "3.5", "1e-2", "-1e400", "nan", "inf", "true", "no", "none", "null", "auto",
         "[]", "{}", "{", '{"power": 1}', '{"a": {"b": [1]}}', "[1, 2]", "1:30", "010", "2025-01-02", "steps", "epoch",
         "best", "clars", "a b", "ä\u202e", "x" * 5000, "9" * 5000, "\x1b[31m", "../..", "/dev/null", "~nobody/x",
         "file\nname",
         "8589934592", "99999999999999999999", "subset", "1e308", "5e-324", "constant", "cosine", "linear")  # fmt: skip
# As YAML, for which some are of a kind that no setting has.
TEXTS = (*(json.dumps(word) for word in WORDS), "", "null", "~", "yes", "1:30", "2025-01-02", "!!set {a, b}",
         "!!binary aGk=", "!!timestamp 2025-01-02", "[]", "[1, [2]]", "{a: 1}", "{1: 2}", "{a: 1, a: 2}", "&x [*x]",
         "*y", "!!python/object:os.system x", ".nan", "-.inf", "0x1F", "1_0", "|\n  a\n  b", "[nan, {a: b}]", "0b1",
         "[0.5, 0.25]", "!!float 1:30.5", "? 1", "- 1", "\t", "%", "@", "!!omap [a: 1]", "!<x> 1")  # fmt: skip


@dataclass
class Case:
    """A command line.

    Attributes:
        settings: setting → text, where they are all that is odd: what is refused names one of them, and what is taken
            arrives.
    """

    argv: list[str]
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def flags(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """Without end, of all kinds in turn; files are written into `folder`."""
    dice = random.Random(seed)
    kinds = (of_flags, of_flags, of_methods, of_yaml, of_yaml, of_files, of_sweeps, of_grids, of_folders, of_commands)
    number = 0
    while True:
        for kind in kinds:
            number += 1
            here = folder / f"{number:05d}"
            here.mkdir()
            yield kind(dice, here)


def of_flags(dice: random.Random, here: Path) -> Case:
    """With none that is odd, too, which trains wherever the checkout is."""
    odd = {dice.choice(SETTINGS): dice.choice(WORDS) for _ in range(dice.choice((0, 1, 1, 1, 2, 3)))}
    odd.pop("output_dir", None)  # wherever it may be, a folder is made there
    environment = {"WANDB_MODE": dice.choice(("garbage", "", "offline"))} if dice.random() < 0.05 else {}
    if environment:
        odd["report_to"] = "wandb"
        environment |= {"WANDB_DIR": str(here)}
    argv = ["train", *flags({**TINY, **odd}), "--output_dir", str(here / "run")]
    return Case(argv, {} if environment else odd, environment)


def of_methods(dice: random.Random, here: Path) -> Case:
    """Optimizers with settings of each other."""
    odd: dict[str, str] = {"optim": dice.choice(OPTIMIZERS)}
    if dice.random() < 0.7:
        odd["learning_rate"] = dice.choice(("0.1", "1", "-1", "0"))
    options: dict[str, Callable[[], str]] = {
        "eta": lambda: dice.choice(("-3", "0.02", "0")),
        "momentum": lambda: dice.choice(("0.9", "0.5", "1", "-0.1")),
        "mode": lambda: dice.choice(("subset", "per_sample", "authors", "all")),
        "norm_samples": lambda: dice.choice(("0", "8", "512")),
        "bias_and_norm": lambda: dice.choice(("eta", "mlperf", "paper", "none")),
        "decay_in_denominator": lambda: dice.choice(("true", "false")),
        "untracked": lambda: dice.choice(("error", "stand_in", "x")),
        "weight_decay": lambda: dice.choice(("0.1", "-1")),
        "adam_beta1": lambda: dice.choice(("0.5", "1.5")),
        "adam_epsilon": lambda: "1e-4",
        "optim_args": lambda: dice.choice(
            ("momentum=0.5", "eta=0.5", "nesterov=maybe", "alpha=.5,", "beta1=.5", "weight_decay=1", "a=b=c", "=", "x",
             "momentum=0.5,momentum=0.6", "momentum=nan", "eps=1e-3", "nesterov=true,momentum=0.3")
        ),
        "optim_target_modules": lambda: "all-linear",
        "layerwise_epochs": lambda: dice.choice(("1", "-1")),
        "lr_scheduler_type": lambda: dice.choice(("constant", "cosine", "greedy", "reduce_lr_on_plateau", "linear")),
        "warmup_steps": lambda: dice.choice(("1", "2.5", "0.5")),
        "base_learning_rate": lambda: "0.3",
        "fp16": lambda: "true",
        "bf16": lambda: "true",
    }  # fmt: skip
    for name in dice.sample(list(options), dice.choice((1, 1, 2))):
        odd[name] = options[name]()
    return Case(["train", *flags({**TINY, **odd}), "--output_dir", str(here / "run")], odd)


def of_yaml(dice: random.Random, here: Path) -> Case:
    """A setting with an odd value, or a text that was damaged."""
    given = {**TINY, "output_dir": str(here / "run")}
    name, value = dice.choice([s for s in SETTINGS if s != "output_dir"]), dice.choice(TEXTS)
    if dice.random() < 0.7:
        given.pop(name, None)
    text = yaml.safe_dump(given) + f"{name}: {value}\n"
    argv = ["train", "--config", str(here / "config.yaml")]
    (here / "config.yaml").write_text(text, encoding="utf-8")
    return Case(argv, {name: value} if value == "null" else {})


def damaged(dice: random.Random, data: bytes) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(data) + 1)
        what = dice.randrange(6)
        if what == 0:
            data = data[:at]
        elif what == 1:
            data = data[:at] + bytes(dice.randrange(256) for _ in range(dice.choice((1, 8)))) + data[at + 1 :]
        elif what == 2:
            data = (
                data[:at]
                + dice.choice((b"\n", b": ", b"- ", b"{", b"]", b'"', b"&a ", b"*a", b"\x00", b"\xe9"))
                + data[at:]
            )
        elif what == 3:
            end = min(len(data), at + dice.randrange(1, 40))
            data = data[:at] + data[end:]
        elif what == 4:
            data = data + data[at : at + 60]
        else:
            data = data[:at] + dice.choice((b"NaN", b"1e999", b"null", b"[]", b"-1", b"{}", b'"x"')) + data[at + 1 :]
    return data or b" "


def of_files(dice: random.Random, here: Path) -> Case:
    """`--config` of something that is no YAML, or no file."""
    file = here / "config.yaml"
    whole = yaml.safe_dump({**TINY, "output_dir": str(here / "run")}).encode()
    which = dice.randrange(12)
    path: Path | str = file
    if which == 0:
        path = dice.choice(("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "", "~nobody/x", "a\x00b"))
    elif which == 1:
        file.mkdir()
    elif which == 2:
        os.mkfifo(file)
    elif which == 3:
        file.symlink_to(file)
    elif which == 4:
        file.write_bytes(whole.decode().encode("utf-16"))
    elif which == 5:
        file.write_bytes(whole + "run_name: \u00e9\n".encode("latin-1"))
    else:
        file.write_bytes(damaged(dice, whole))
    words = ["--config", str(path)]
    if dice.random() < 0.1:
        words += ["--config", str(path)]
    return Case(["train", *words, "--output_dir", str(here / "run")])


def of_sweeps(dice: random.Random, here: Path) -> Case:
    sweep: dict[str, Any] = {
        "program": "recipes/imagenet_clars.py",
        "method": dice.choice(("grid", "random")),
        "parameters": {**{k: {"value": json.dumps(v) if isinstance(v, dict) else v} for k, v in TINY.items()},
                       "seed": {"values": [0, 1]}, "eta": {"values": [0.01, 0.02]}},
        "run_cap": 3,
    }  # fmt: skip
    argv = ["sweep", str(here / "sweep.yaml"), "--results", str(here / "r"), "--work", str(here / "w")]
    which = dice.randrange(5)
    text = yaml.safe_dump(sweep)
    if which == 0:
        name = dice.choice(SETTINGS)
        spec = dice.choice(("{{value: {}}}", "{{values: [{}]}}", "{{values: {}}}", "{}", "{{distribution: {}}}"))
        sweep["parameters"].pop(name, None)
        text = yaml.safe_dump(sweep).replace(
            "parameters:\n", f"parameters:\n  {name}: {spec.format(dice.choice(TEXTS))}\n"
        )
    elif which == 1:
        key = dice.choice(("program", "method", "parameters", "run_cap", "command", "metric", "early_terminate", "x"))
        sweep.pop(key, None)
        text = yaml.safe_dump(sweep) + f"{key}: {dice.choice(TEXTS)}\n"
    elif which == 2:
        (here / "sweep.yaml").write_bytes(damaged(dice, text.encode()))
    elif which == 3:
        argv += ["--set", f"{dice.choice(SETTINGS)}={dice.choice(WORDS)}"]
    else:
        argv += odd_options(dice, here)
    if which != 2:
        (here / "sweep.yaml").write_text(text, encoding="utf-8")
    return Case(argv)


def odd_options(dice: random.Random, here: Path) -> list[str]:
    """Of commands that make several runs."""
    name = dice.choice(("--jobs", "--threads", "--only", "--set", "--data_dir", "--results", "--work", "--launch",
                        "--count", "--seed", "--list", "--draw", "--preset", "--nothing"))  # fmt: skip
    if name in ("--list", "--draw", "--nothing"):
        return [name]
    if name in ("--results", "--work"):
        (here / "file").touch()
        return [
            name,
            dice.choice((str(here / "file"), str(here / "file" / "x"), "/proc/nothing", str(here / ("n" * 300)))),
        ]
    words = dice.choice(WORDS)
    return [name, f"{dice.choice(('seed=', 'optim=', '', 'eta=', '=', 'output_dir=', '3='))}{words}"]


def of_grids(dice: random.Random, here: Path) -> Case:
    """`figure` with odd options, and `tune` with an odd file."""
    beside = ["--results", str(here / "r"), "--work", str(here / "w")]
    if dice.random() < 0.3:
        return Case(
            ["figure", dice.choice(("1", "2", "3", "4", "5", "x")), *beside, "--list", *odd_options(dice, here)]
        )
    grid: dict[str, Any] = {
        "method": "grid",
        "settings": {k: v for k, v in copy.deepcopy(TINY).items() if k != "optim"},
        "parameters": {"method": {"choices": {"clars": {"optim": "clars"}, "lars": {"optim": "lars"}}}},
        "drawing": {"columns": ["method"], "rows": ["loss", "gamma"], "lines": ["method"]},
        "tuning": {"search": {"seed": 0}, "seeds": [1, 2],
                   "trials": {m: [{"base_learning_rate": r} for r in (0.1, 0.2)] for m in ("clars", "lars")}},
    }  # fmt: skip
    where = grid
    for _ in range(dice.choice((1, 2, 3))):
        key = dice.choice(list(where))
        if not isinstance(where[key], dict):
            break
        where = where[key]
    key = dice.choice([*where, dice.choice(SETTINGS)])
    where[key] = "ODD"
    text = yaml.safe_dump(grid).replace("ODD", dice.choice(TEXTS), 1)
    if dice.random() < 0.2:
        (here / "grid.yaml").write_bytes(damaged(dice, text.encode()))
    else:
        (here / "grid.yaml").write_text(text, encoding="utf-8")
    return Case(["tune", str(here / "grid.yaml"), *beside, *(odd_options(dice, here) if dice.random() < 0.3 else [])])


def of_folders(dice: random.Random, here: Path) -> Case:
    """`plot` and `compare` of run folders that were damaged, and results that a sweep finds."""
    run = here / "run"
    run.mkdir()
    log = [{"step": i, "epoch": i / 2, "loss": 2.0 / i, "learning_rate": 0.1, "images_seen": 32 * i, "seconds": 1.5 * i}
           for i in range(1, 6)]  # fmt: skip
    log += [{"step": 5, "epoch": 2.5, "eval_loss": 0.5, "eval_accuracy": 0.8, "images_seen": 160, "seconds": 8.0}]
    layers = {"a.weight": {"gamma": 0.1, "variance_factor": 2.0}, "b.weight": {"gamma": 0.2, "weight_norm": 1.0}}
    files = {
        "trainer_state.json": json.dumps({"log_history": log, "global_step": 5}, indent=1),
        "layer_statistics.jsonl": "".join(
            json.dumps({"step": i, "epoch": 1.0, "layers": layers}) + "\n" for i in (1, 3)
        ),
        "run.json": json.dumps({"config": {"optim": "clars", "seed": 1}, "state": "finished", "wandb_run_id": None}),
        "all_results.json": json.dumps({"eval_accuracy": 0.8, "train_loss": 0.4}),
    }
    for name in dice.sample(list(files), dice.choice((1, 1, 2))):
        what = dice.randrange(8)
        if what == 0:
            files[name] = dice.choice(("", "[]", "{}", "null", "3", '"x"', "[" * 100_000, '{"log_history": 3}'))
        elif what == 1 and name == "trainer_state.json":
            entry = dice.choice(log)
            entry[dice.choice(list(entry))] = dice.choice((None, "x", [], {}, True, 1e400, -1, "nan"))
            files[name] = json.dumps({"log_history": log})
        elif what == 2 and name == "layer_statistics.jsonl":
            odd = dice.choice((None, [], {"a": 1}, {"a": {"gamma": "x"}}, {"a": {"gamma": -1}}, {"a": {}}, {}))
            files[name] += json.dumps({"step": dice.choice((1, "x", None)), "layers": odd}) + "\n"
        else:
            files[name] = damaged(dice, files[name].encode()).decode("latin-1")
    for name, text in files.items():
        (run / name).write_bytes(text.encode("latin-1"))
    if dice.random() < 0.5:
        return Case(["plot", str(run)])
    return Case(["compare", str(run), *(["--out", str(here / "out")] if dice.random() < 0.15 else [])])


def of_commands(dice: random.Random, here: Path) -> Case:
    """The other commands, and words that none of them knows."""
    which = dice.randrange(3)
    if which == 0:
        given = {"dataset": str(FASHION), "model_name": "resnet8_cifar", "examples": 4, "image_size": 8}
        odd = {dice.choice([f.name for f in fields(RatesArguments)]): dice.choice(WORDS)}
        return Case(["rates", *flags({**given, **odd})])
    if which == 1:
        name = dice.choice(("--metric", "--target", "--axis", "--group-by", "--where", "--layers", "--out", "--x"))
        return Case(["compare", dice.choice((str(here), "wandb:", "trackio:x", "wandb:a/b?c", "", "a\x00b", "~nobody")),
                     name, dice.choice(WORDS)])  # fmt: skip
    words = ("train", "plot", "figure", "tune", "sweep", "compare", "rates", "-", "--", "--versio", "x", "")
    return Case([dice.choice(words), *dice.sample(WORDS, dice.randrange(1, 3))])
