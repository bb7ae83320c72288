"""The recipes that come with the package: found by name from any folder, listed, shown, copied."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hf_clars import ClarsTrainingArguments, UserError
from hf_clars.cli import main
from hf_clars.configuration import parse, read_config
from hf_clars.experiments import Runner, read_sweep
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.recipes.packaged import SEARCHES, SWEEPS, TRAININGS, USES, find, named, recipes

from .helpers.recipe import RECIPES

ON_THE_HUB = ("uoft-cs/cifar10", "uoft-cs/cifar100", "ylecun/mnist", "ILSVRC/imagenet-1k")
PARTS = sorted(path.relative_to(RECIPES) for path in RECIPES.glob("sweeps/*/*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The working folder is an empty one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def said(capsys, *words: str, status: int = 0) -> list[str]:
    """Lines of output, or of errors where there is one."""
    assert main([*words]) == status
    out, err = capsys.readouterr()
    return [line for line in (err if status else out).splitlines() if not line.startswith("[INFO]")]


# ---- which one a name means ------------------------------------------------------------------------------------------


def test_every_recipe_by_its_names():
    files = [path for folder in USES for path in (RECIPES / folder).iterdir() if path.is_file()]
    assert sorted(recipes().values()) == sorted(path for path in files if path.name != "README.md")
    for full, path in recipes().items():
        folder, _, short = full.partition("/")
        assert path == RECIPES / folder / (short + ("" if "." in short else ".yaml"))
        assert {named(full), named(short, [folder]), find(short, [folder], "x")} == {path}
        if path.suffix == ".yaml":
            assert {named(f"{full}.yaml"), named(f"{short}.yaml", [folder])} == {path}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_parts_of_a_sweep_have_their_whole_name_alone(part):
    assert named(part.as_posix()) == find(str(part.with_suffix("")), TRAININGS, "x") == RECIPES / part
    with pytest.raises(UserError, match=f"^{part.stem}: no recipe has that name"):
        named(part.stem)


def test_a_file_wins_and_a_folder_does_not(elsewhere):
    (elsewhere / "resnet50_clars").write_text("eta: 0.5\n")
    (elsewhere / "fashion_mnist").mkdir()
    assert read_config("resnet50_clars", ClarsTrainingArguments) == {"eta": 0.5}
    assert find("fashion_mnist", TRAININGS, "x") == RECIPES / "demo" / "fashion_mnist.yaml"
    assert find("fashion_mnist", SWEEPS, "x") == RECIPES / "sweeps" / "fashion_mnist.yaml"


NEITHER = "no such file, and no recipe has that name"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --config resnet50_clrs",
         f"--config resnet50_clrs: {NEITHER}; did you mean resnet50_clars or resnet50_lars?"),
        ("train --config imagenet/resnet_clars.yaml",
         f"--config imagenet/resnet_clars.yaml: {NEITHER}; did you mean imagenet/resnet50_clars or "
         "imagenet/resnet50_lars?"),
        ("train --config 1_gpu", f"--config 1_gpu: {NEITHER}; `hf-clars recipes` lists them"),
        ("train --config ../carry", f"--config ../carry: {NEITHER}; `hf-clars recipes` lists them"),
        ("train --config launch/../demo/fashion_mnist",
         f"--config launch/../demo/fashion_mnist: {NEITHER}; did you mean demo/fashion_mnist?"),
        ("sweep cifr10", f"cifr10: {NEITHER}; did you mean cifar10 or cifar10_8192?"),
        ("tune evidense", f"evidense: {NEITHER}; did you mean evidence?"),
        ("recipes 8_gpu", "8_gpu: no recipe has that name; did you mean 8_gpus or 1_gpu?"),
        ("recipes fashion_mnist",
         "fashion_mnist is the name of demo/fashion_mnist and sweeps/fashion_mnist: say which"),
        ("recipes 1_gpu --overwrite", "--overwrite is for --to FOLDER: add it"),
    ],
)  # fmt: skip
def test_one_line_for_each_mistake(capsys, words, line):
    assert said(capsys, *words.split(), status=2) == [f"error: {line}"]


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_the_demo_trains_on_its_own_data_wherever_it_is_started(elsewhere):
    """Not on a folder of that name, which may hold anything, nor on the Hub's data set of that name."""
    for _ in range(2):
        recipe, _ = parse(["--config", "fashion_mnist"], RecipeArguments, ClarsTrainingArguments)
        assert Path(recipe.dataset) == RECIPES / "demo" / "fashion_mnist"
        (elsewhere / "fashion_mnist").mkdir(exist_ok=True)


def test_a_data_sets_folder_is_beside_the_file_then_in_the_working_folder(elsewhere, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("dataset: data\n")
    assert read_config(file, RecipeArguments) == {"dataset": "data"}  # for the Hub
    (elsewhere / "data").mkdir()
    assert read_config(file, RecipeArguments) == {"dataset": "data"}
    (tmp_path / "data").mkdir()
    assert read_config(file, RecipeArguments) == {"dataset": str(tmp_path / "data")}
    for other in (str(elsewhere), "ILSVRC/imagenet-1k", "~"):
        file.write_text(yaml.safe_dump({"dataset": other}))
        assert read_config(file, RecipeArguments) == {"dataset": other}


@pytest.mark.parametrize("name", [*recipes(SWEEPS), *recipes(SEARCHES)])
def test_sweeps_find_what_they_name(name):
    sweep = read_sweep(named(name))
    assert all(Path(word).is_file() for word in sweep.launch if word.endswith(".yaml"))
    runner = Runner(Path(), Path(), sweep_file=named(name))
    for run in sweep.runs():
        flags = runner.flags(run)
        dataset = flags[flags.index("--dataset") + 1]
        assert Path(dataset).is_dir() or dataset in (
            "uoft-cs/cifar10",
            "uoft-cs/cifar100",
            "ylecun/mnist",
            "ILSVRC/imagenet-1k",
        )


def test_commands_take_names(capsys):
    assert len(said(capsys, "sweep", "cifar10", "--list")) == 15
    (first, *_) = said(capsys, "tune", "evidence", "--list", "--only", "network=resnet20", "B=4096", "method=clars")
    assert first.startswith("B=4096 resnet20 clars trial=0: ")
    assert said(capsys, "tune", "cifar", "--preset", "small", "--draw") == ["no results in results/tuning-cifar/small"]


# ---- listed, shown, copied -------------------------------------------------------------------------------------------


def test_the_list_has_each_recipe_and_what_it_is(capsys):
    lines = said(capsys, "recipes")
    for full in recipes():
        folder, _, short = full.partition("/")
        begin = next(i for i, line in enumerate(lines) if line.startswith(f"{folder}: "))
        (row,) = [line for line in lines[begin : lines.index("", begin)] if line.split()[0] == short]
        assert re.fullmatch(rf"  {re.escape(short)}  .+[.]", row), row
        assert len(row) <= 160


def test_shown(capsys):
    text = (RECIPES / "accelerate" / "1_gpu.yaml").read_text()
    assert said(capsys, "recipes", "1_gpu") == text.splitlines()


def copied(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", recipes())
def test_a_copy_has_all_that_it_names(capsys, elsewhere, name):
    lines = said(capsys, "recipes", name, "--to", ".")
    found = copied(elsewhere)
    assert sorted(lines) == sorted(found)
    assert f"recipes/{named(name).relative_to(RECIPES)}" in found
    assert all(found[path] == (RECIPES.parent / path).read_bytes() for path in found)
    for path, content in found.items():
        if path.endswith((".yaml", ".sh", ".sbatch")):
            said_there = set(re.findall(r"recipes/(?!results)[\w/]+\.\w+", content.decode()))
            assert said_there <= found.keys()


def test_copies_of_all_and_of_programs(capsys, elsewhere):
    assert "not/there/recipes/demo/fashion_mnist/LICENSE" in said(capsys, "recipes", "--to", "not/there")
    assert copied(elsewhere / "not" / "there") == {f"recipes/{name}": data for name, data in copied(RECIPES).items()
                                                  if name.split("/")[0] in (*USES, "imagenet_clars.py")}  # fmt: skip
    assert (elsewhere / "not/there/recipes/launch/ssh.sh").stat().st_mode & 0o100


def test_an_edited_copy_is_what_runs(capsys, elsewhere):
    said(capsys, "recipes", "cifar10", "--to", "mine")
    (elsewhere / "mine/recipes/sweeps/cifar10/clars.yaml").write_text("optim: clars\neta: 0.5\n")
    sweep = read_sweep(elsewhere / "mine/recipes/sweeps/cifar10.yaml")
    assert {run.settings["eta"] for run in sweep.runs({"config": ["clars"]})} == {0.5}


def test_nothing_is_overwritten_without_being_told(capsys, elsewhere, tmp_path):
    said(capsys, "recipes", "cifar10", "--to", ".")
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*.yaml")}
    said(capsys, "recipes", "cifar10", "--to", ".")  # the same content
    assert before == {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*.yaml")}

    edited, other = elsewhere / "recipes/sweeps/cifar10.yaml", elsewhere / "recipes/sweeps/cifar10/mnag.yaml"
    edited.write_text("method: grid\n")
    (tmp_path / "precious").write_text("x")
    other.unlink()
    other.symlink_to(tmp_path / "precious")
    (missing := elsewhere / "recipes/sweeps/cifar10/lars.yaml").unlink()
    assert said(capsys, "recipes", "cifar10", "--to", ".", status=2) == [
        "error: recipes/sweeps/cifar10/mnag.yaml and 1 more: another file is there; --overwrite replaces it"
    ]
    assert edited.read_text() == "method: grid\n"
    assert not missing.exists()

    said(capsys, "recipes", "cifar10", "--to", ".", "--overwrite")
    assert edited.read_bytes() == (RECIPES / "sweeps/cifar10.yaml").read_bytes()
    assert not other.is_symlink()
    assert (tmp_path / "precious").read_text() == "x"


def test_a_copy_that_cannot_be_written(capsys, elsewhere):
    (elsewhere / "file").write_text("")
    (line,) = said(capsys, "recipes", "1_gpu", "--to", "file", status=2)
    assert line.startswith("error: --to file: ")
    (elsewhere / "recipes/accelerate/1_gpu.yaml").mkdir(parents=True)
    (line,) = said(capsys, "recipes", "1_gpu", "--to", ".", "--overwrite", status=2)
    assert line.startswith("error: --to .: ")
