"""README and docs/: their Python runs, their commands are parsed, and the reference leaves nothing out."""

import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from transformers import Trainer, TrainingArguments

import hf_clars
from hf_clars import ClarsTrainingArguments, UserError
from hf_clars.cli import COMMANDS, main
from hf_clars.configuration import parse
from hf_clars.experiments import read_sweep
from hf_clars.image_classification.arguments import DEFAULTS, RecipeArguments
from hf_clars.theory.arguments import RatesArguments
from hf_clars.trainer.arguments.options import NOT_TAKEN, OPTIMIZERS, OptimizerOptions

from .helpers.models import Classifier, dataset
from .helpers.scripts import ROOT, module_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str, pages: list[Path]) -> Iterator[tuple[Path, str]]:
    for page in pages:
        for code in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            yield page, code


def named(found: Iterator[tuple[Path, str]]) -> list:
    """For `parametrize`: the code, and page and number as its name."""
    return [pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}") for i, (page, code) in enumerate(found)]


# --- Python ---------------------------------------------------------------------------------------------------------

# What a snippet says of sizes, at a size that a test has time for.
SMALLER = {
    "16384": "16",
    "=256": "=4",
    "num_train_epochs=90": "max_steps=1",
    "gradient_accumulation_steps=16": "gradient_accumulation_steps=2",
    "bf16=True": "use_cpu=True",
    '"resnet50", num_classes=1000': '"resnet8_cifar", num_classes=3',
}


class MyKernel(torch.autograd.Function):
    """Of the example of an operator of one's own: nothing can see into it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum_to_size(w.shape)


def at_hand() -> dict:
    """What snippets take as given."""
    few = dataset(16)
    x, y = torch.stack([e["pixel_values"] for e in few]), torch.tensor([e["labels"] for e in few])
    photos = [{"pixel_values": torch.randint(256, (3, 32, 32)).byte(), "labels": i % 3} for i in range(32)]
    micro_batch = namedtuple("MicroBatch", "x y")
    return {
        "hf_clars": hf_clars,
        "Trainer": Trainer,
        "model": Classifier(),
        "dataset": few,
        "train": photos,
        "validation": photos[:4],
        "loader": [[micro_batch(x[:8], y[:8]), micro_batch(x[8:], y[8:])]] * 2,
        "batches": [(x, y)],
        "loss_fn": lambda outputs, targets: torch.nn.functional.cross_entropy(outputs["logits"], targets),
        "args": TrainingArguments("outputs", max_steps=20, use_cpu=True),
        "MyKernel": MyKernel,
    }


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # Trainer's default, on a CPU
@pytest.mark.parametrize("code", named(blocks("python", PAGES)))
def test_snippets_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    module = type(sys)("snippet")  # classes are made in it
    monkeypatch.setitem(sys.modules, "snippet", module)
    vars(module).update(at_hand())
    exec(compile(code, "snippet", "exec"), vars(module))


# --- commands -------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """A program has its options, and would begin now."""


def commands(block: str) -> Iterator[list[str]]:
    """The programs that lines of a shell start, with what they are given."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;"):
                yield command
                command = []
            elif command or not re.match(r"\w+=", word):  # a variable for the program
                command.append(word)


def take(program: str, *given: str) -> None:
    """Raises where a program of ours, or one that starts it, does not accept its options; leaves others alone."""
    words = [word for word in given if word != "…"]
    if program in ("accelerate", "torchrun"):
        starter, words = (launch_command_parser(), words[1:]) if program == "accelerate" else (get_args_parser(), words)
        launch, rest = starter.parse_known_args(words)
        assert not rest
        module = ["-m"] * bool(launch.module)
        take("python", *module, launch.training_script, *launch.training_script_args)
    elif program == "timeout":
        take(*words[1:])
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python" and words[:2] == ["-m", "hf_clars"]:
        take("hf-clars", *words[2:])
    elif program == "python" and words[0] == "recipes/imagenet_clars.py":
        take("hf-clars", "train", *words[1:])
    elif program == "python" and words[0].startswith("recipes/"):
        sys.path.insert(0, str((ROOT / words[0]).parent))
        sys.argv = words
        with pytest.raises(Parsed), mock.patch("torch.cuda.is_available", return_value=True):  # `--device cuda`
            runpy.run_path(words[0], run_name="__main__")
    elif program == "hf-clars":
        assert all((ROOT / word).exists() for word in words if re.fullmatch(r"recipes/\S+\.yaml", word))
        take_command(words)


def take_command(words: list[str]) -> None:
    """The same of `hf-clars`."""
    if words[0] == "train":
        here = [] if "--use_cpu" in words else ["--use_cpu", "true"]  # a test's machine need not be what is asked for
        parse([*words[1:], *here], RecipeArguments, ClarsTrainingArguments, defaults=DEFAULTS)
    elif words[0] == "rates":
        parse(words[1:], RatesArguments)
    elif words[0].endswith(".py"):  # of somebody else, on Trainer
        assert {word[2:] for word in words if word.startswith("--")} <= {f.name for f in fields(TrainingArguments)}
    else:
        with pytest.raises(Parsed):
            main(words)


@pytest.fixture
def only_parsed(monkeypatch):
    """Programs end where they have their options."""
    real = ArgumentParser.parse_args

    def parse_args(parser, *args, **kwargs):
        real(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("block", named(blocks("console", [*PAGES, *sorted((ROOT / "recipes").rglob("*.md"))])))
def test_commands_are_accepted(block, only_parsed):
    for command in filter(None, commands(block)):
        take(*command)


def test_an_unknown_flag_is_not(only_parsed):
    for command in ("hf-clars sweep a.yaml --jbos 2", "python recipes/imagenet_clars.py --batch 2",
                    "accelerate launch --gpus 8 -m hf_clars train", "python recipes/benchmarks/memory.py --batches 3",
                    "timeout 9 hf-clars rates --data a", "X=1 python -m hf_clars compare --goal 3 a"):  # fmt: skip
        with pytest.raises((UserError, AssertionError, SystemExit, pytest.fail.Exception)):
            take(*next(commands(command)))


@pytest.mark.parametrize("text", named(blocks("yaml", PAGES)))
def test_sweeps_are_read(text, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    for preset in (None, "small"):
        assert read_sweep(tmp_path / "sweep.yaml", preset).runs()


# --- the reference --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    """What `docs/generated.py` makes, by name."""
    generated = module_of(ROOT / "docs" / "generated.py")
    return {name: make() for name, make in generated.PARTS.items()}


def first_cells(table: str) -> list[str]:
    return re.findall(r"^\| (?:<[^|]*>)?`(\w+)` \|", table, re.MULTILINE)


def test_every_part_has_a_page(parts):
    places = [part for page in PAGES for part in re.findall(r"<!-- generated: (\S+) -->", page.read_text())]
    assert sorted(places) == sorted(parts)


def test_every_argument_is_named_once(parts):
    wanted = [f.name for kind in (RecipeArguments, ClarsTrainingArguments) for f in fields(kind) if f.init]
    assert sorted(first_cells(parts["arguments"])) == sorted(wanted)
    row = r"\| `0.08` \| number, ≥ 0.01, ≤ 1 \| Smallest share of the area that a random crop takes\. \|"
    assert re.search(f"`min_scale` {row}", parts["arguments"])


def test_every_key_of_optim_args_is_named_with_its_defaults(parts):
    assert first_cells(parts["optim_args"]) == [f.name for f in fields(OptimizerOptions)]
    rows = [line.split(" | ") for line in parts["optim_args"].splitlines()[2:]]
    for key, cells in zip(fields(OptimizerOptions), rows, strict=True):
        for optim, cell in zip(OPTIMIZERS, cells[1:], strict=False):
            assert (cell == "–") == (key.name in NOT_TAKEN[optim])
    assert rows[0][1:3] == ["`0.01`", "`0.001`"]


def test_every_command_is_shown(parts):
    assert re.findall(r"^## hf-clars (\w+)$", parts["command-line"], re.MULTILINE) == [*COMMANDS]
    for command in COMMANDS:
        assert f"usage: hf-clars {command} " in parts["command-line"]


def test_every_public_name_is_shown():
    shown = re.findall(r"^::: (\S+)", "".join(page.read_text() for page in PAGES), re.MULTILINE)
    assert {f"hf_clars.{name}" for name in hf_clars.__all__} - {"hf_clars.__version__"} <= {*shown}


# --- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    """Of those pages that are no part of docs/; mkdocs looks after the others."""
    for target in re.findall(
        r"\]\((?!https?:|#)([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    ):
        assert (page.parent / target).exists(), target
