"""Help: short, quick, complete and true."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_clars import ClarsTrainingArguments
from hf_clars.cli import main
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.image_classification.help import Transformers

from .helpers.scripts import ROOT, run_python, without

COMMANDS = ("train", "rates", "plot", "sweep", "figure", "tune", "recipes", "compare")


def told(capsys, *words: str) -> str:
    with suppress(SystemExit):  # argparse's
        assert main([*words]) == 0
    return capsys.readouterr().out


def flags_of(text: str) -> list[str]:
    return re.findall(r"^  --(\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_and_an_example(capsys, command):
    text = told(capsys, command, "--help")
    assert text.startswith(f"usage: hf-clars {command} ")
    assert f"  hf-clars {command} " in text.partition("example")[2].replace(": ", "  ")
    for file in re.findall(r"recipes/\S+", text):
        assert (ROOT / file).is_file() or "*" in file


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize(
    "words",
    [["--help"], *([c, "--help"] for c in COMMANDS), ["train", "--help-all"], ["recipes"], ["recipes", "evidence"]],
)
def test_help_is_readable_in_any_encoding(monkeypatch, words, encoding):
    """What an encoding lacks is written as an escape; main lets go of the streams."""

    def written(encoding: str) -> bytes:
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")
        with monkeypatch.context() as patch, suppress(SystemExit):
            patch.setattr(sys, "stdout", out)
            assert main(words) == 0
        out.flush()
        assert "write" not in vars(out)
        return out.buffer.getvalue()

    assert written(encoding) == written("utf-8").decode().encode(encoding, "backslashreplace")


WITH_PATHS = [
    ["train", *(f"--{name}" for name in ("config", "dataset", "output_dir", "model_name", "train_split", "deepspeed"))],
    ["rates", "--dataset", "--checkpoint"], ["plot", "output_dir"], ["recipes", "--to"],
    *([name, "file", "--results", "--work", "--data_dir", "--launch", "--preset"] for name in ("sweep", "tune")),
    ["figure", "--results", "--work"], ["compare", "SOURCE", "--out"],
]  # fmt: skip


@pytest.mark.parametrize(("command", "name"), [(words[0], name) for words in WITH_PATHS for name in words[1:]])
@pytest.mark.parametrize("empty", ["", " "])
def test_empty_text_is_no_path(tmp_path, monkeypatch, capsys, command, name, empty):
    """It would be the working folder, or be found out after data were read."""
    monkeypatch.chdir(tmp_path)
    needed = {"figure": ["1"], "sweep": ["fashion_mnist"], "tune": ["evidence"], "compare": ["."]}.get(command, [])
    words = [*needed, name, empty] if name.startswith("--") else [empty]
    assert main([command, *words]) == 2
    assert capsys.readouterr().err == f"error: {name} is empty: give it a value, or leave it out\n"
    assert not list(tmp_path.iterdir())


def test_empty_text_in_a_file_is_refused_as_well(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("dataset: ''")
    assert main(["train", "--config", str(tmp_path / "empty.yaml")]) == 2
    assert capsys.readouterr().err.endswith("empty.yaml: dataset is empty: give it a value, or leave it out\n")


def test_a_command_needs_no_standard_output():
    run = f"'{sys.executable}' -m hf_clars recipes >&- 2>&-"
    assert subprocess.run(["sh", "-c", run], cwd=ROOT, env=without(), check=False).returncode == 0


def test_help_imports_nothing_large():
    run = "for c in {commands}:\n    try: main([*c, '--help'])\n    except SystemExit as end: assert end.code == 0\n"
    large = "{'torch', 'transformers', 'numpy', 'pandas', 'matplotlib', 'accelerate', 'timm', 'wandb'}"
    commands = [[], *([command] for command in COMMANDS)]
    run_python("-c", f"import sys\nfrom hf_clars.cli import main\n{run.format(commands=commands)}"
               f"found = {large} & set(sys.modules)\nassert not found, found")  # fmt: skip


def test_help_on_train_is_short_and_has_each_option_of_ours_once(capsys):
    text = told(capsys, "train", "--help")
    assert text.count("\n") <= 100
    assert max(map(len, text.splitlines())) <= 120
    found = flags_of(text)
    theirs = {f.name for f in fields(Transformers)}
    base = {f.name for f in fields(TrainingArguments)}
    ours = {f.name for kind in (RecipeArguments, ClarsTrainingArguments) for f in fields(kind)} - base
    assert len(found) == len(set(found))
    assert ours <= set(found)
    assert theirs <= set(found)


def test_defaults_of_transformers_options_are_theirs():
    real = {f.name: f.default for f in fields(ClarsTrainingArguments)}
    for field in fields(Transformers):
        assert getattr(real[field.name], "value", real[field.name]) == field.default, field.name


def test_all_options_stand_in_help_all_in_one_spelling(capsys):
    found = flags_of(told(capsys, "train", "--help-all"))
    kinds = (RecipeArguments, ClarsTrainingArguments)
    assert sorted(found) == sorted(f.name for kind in kinds for f in fields(kind) if f.init)
    assert not any("-" in name for name in found)


def test_importing_the_package_imports_nothing_large():
    run_python("-c", "import sys, hf_clars; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")


def test_names_of_the_package_are_found_when_asked_for():
    import hf_clars
    from hf_clars import experiments, theory, trainer

    for package in (hf_clars, experiments, theory, trainer):
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
    assert Path(hf_clars.norms.__file__).is_file()
