"""What is published: the wheel and the sdist, and the wheel at work outside of a checkout."""

from __future__ import annotations

import json
import tarfile
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hf_clars import __version__
from hf_clars.recipes.copying import everything

from .helpers.scripts import ROOT, run_python, without

ABOUT = f"hf_clars-{__version__}.dist-info"
needs_hatchling = pytest.mark.skipif(find_spec("hatchling") is None, reason="building needs hatchling")


def built(source: Path, folder: Path, target: str) -> Path:
    run_python("-m", "hatchling", "build", "--target", target, "--directory", folder, cwd=source)
    (file,) = folder.iterdir()
    return file


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.mark.slow
@needs_hatchling
def test_a_wheel_has_the_package_and_its_recipes(wheel):
    found = contents(wheel)
    code = [path.relative_to(ROOT) for path in (ROOT / "hf_clars").rglob("*") if path.is_file()]
    expected = {path.as_posix() for path in code if "__pycache__" not in path.parts}
    expected |= {f"hf_clars/{path.relative_to(ROOT).as_posix()}" for path in everything()}
    assert {name for name in found if not name.startswith(ABOUT)} == expected
    for path in everything():
        assert found[f"hf_clars/{path.relative_to(ROOT).as_posix()}"] == path.read_bytes()
    metadata = message_from_bytes(found[f"{ABOUT}/METADATA"])
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    for license_file in ("LICENSE", "recipes/demo/fashion_mnist/LICENSE"):
        assert found[f"{ABOUT}/licenses/{license_file}"] == (ROOT / license_file).read_bytes()
    assert not any(kind.startswith("License ::") for kind in metadata.get_all("Classifier"))
    assert wheel.stat().st_size < 8e6


@pytest.mark.slow
@needs_hatchling
def test_an_sdist_makes_the_same_wheel_and_has_the_tests(wheel, tmp_path):
    sdist = built(ROOT, tmp_path / "sdist", "sdist")
    assert sdist.stat().st_size < 9e6
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"hf_clars-{__version__}"
    assert contents(built(source, tmp_path / "wheel", "wheel")) == contents(wheel)
    for name in ("tests/conftest.py", "Makefile", "CITATION.cff", "recipes/carry.py", "recipes/zoo/__main__.py"):
        assert (source / name).read_bytes() == (ROOT / name).read_bytes()
    assert [path.name for path in (source / "recipes" / "results").iterdir()] == ["sweep-cifar10"]  # which tests read


@pytest.mark.slow
@needs_hatchling
def test_an_editable_install_copies_nothing(tmp_path):
    run_python("-c", f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})")
    found = contents(next(tmp_path.iterdir()))
    assert [name for name in found if not name.startswith(ABOUT)] == ["_hf_clars.pth"]
    assert Path(found["_hf_clars.pth"].decode().strip()) == ROOT


@pytest.mark.slow
@needs_hatchling
@pytest.mark.parametrize("launch", [[], ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1",
                                         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]],
                         ids=["python", "accelerate"])  # fmt: skip
def test_the_demo_from_the_wheel_alone(wheel, tmp_path, launch):
    """In a folder that has other things of the same names."""
    site, here = tmp_path / "site", tmp_path / "here"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (here / "fashion_mnist").mkdir(parents=True)
    environment = without("WANDB") | {"PYTHONPATH": str(site), "WANDB_MODE": "disabled"}
    settings = {"max_steps": 1, "total_batch_size": 128, "eval_examples": 64, "dataloader_num_workers": 0,
                "dataloader_persistent_workers": "false", "plots": "false", "report_to": "none"}  # fmt: skip
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    run_python("-P", *launch, "-m", "hf_clars", "train", "--config", "fashion_mnist", *flags,
               cwd=here, environment=environment)  # fmt: skip
    run = here / "outputs" / "demo"
    assert (run / "model.safetensors").is_file()
    dataset = site / "hf_clars" / "recipes" / "demo" / "fashion_mnist"
    assert json.loads((run / "run.json").read_text())["config"]["dataset"] == str(dataset)


def test_who_is_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert "version" not in cited  # which hf_clars/runtime/version.py says, and nothing else
    (paper,) = cited["references"]
    arxiv = paper["identifiers"][0]["value"].removeprefix("arXiv:")
    assert f"arxiv.org/abs/{arxiv}" in (ROOT / "README.md").read_text()
    assert [author["family-names"] for author in paper["authors"]] == ["Huo", "Gu", "Huang"]
