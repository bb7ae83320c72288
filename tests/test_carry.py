"""`recipes/carry.py`: the wheels that a machine without network lacks, and hf_clars at work there."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from .helpers.bare_machine import BARE, bare_python, closure, without_network, write_wheel

ROOT = Path(__file__).resolve().parents[1]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def carry(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "recipes" / "carry.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "target.json is not what `python3 -m pip inspect` writes"),
        ("{}", "target.json is not what `python3 -m pip inspect` writes"),
        ({}, "target.json is not what `python3 -m pip inspect` writes"),
        ('{"environment": [], "installed": [3]}', "target.json is not what `python3 -m pip inspect` writes"),
        (
            {"platform_system": "Darwin", "platform_machine": "arm64", "python_version": HERE},
            "wheels for Darwin arm64 need their tag: --platform macosx_14_0_arm64, say",
        ),
        (
            {"platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.99"},
            f"the target has Python 3.99, and this is {HERE}: run it with that version",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, target, message):
    file = tmp_path / "target.json"
    if target is not None:
        file.write_text(target if isinstance(target, str) else json.dumps({"environment": target, "installed": []}))
    done = carry(file, tmp_path / "wheels")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"error: {message}".replace("target.json", str(file))]
    assert not (tmp_path / "wheels").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="building a wheel needs hatchling")
def test_on_a_bare_machine(tmp_path):
    """From wheels in a folder to a training: an environment with torch, transformers and accelerate alone, no network.

    No index has its torch, which is kept.
    """
    index, wheels, python = tmp_path / "index", tmp_path / "wheels", bare_python(tmp_path / "bare")
    index.mkdir()
    for name in (closure(["hf_clars"]) | closure(["hatchling"])) - closure(BARE) - {"hf-clars"} | {"packaging"}:
        write_wheel(name, index)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}

    pip = [sys.executable, "-m", "pip"]
    said = subprocess.run([*pip, "inspect", "--path", f"{tmp_path}/bare/lib/python{HERE}/site-packages"],
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    target = tmp_path / "target.json"
    target.write_text(said)
    there = {canonicalize_name(entry["metadata"]["name"]) for entry in json.loads(said)["installed"]}
    assert there == closure(BARE)

    done = carry(target, wheels, **offline)
    assert done.returncode == 0, done.stderr
    names = {canonicalize_name(wheel.name.partition("-")[0]) for wheel in wheels.iterdir()}
    assert names == closure(["hf_clars"]) - there
    assert names > {"hf-clars", "timm", "datasets", "torchvision"}

    install = [*pip, "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run([*install, *map(str, wheels.iterdir())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flags in (["--version"], training(tmp_path / "trained")):
        command = [*without_network(), str(python), "-P", "-m", "hf_clars", *flags]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**variables, "HF_HUB_OFFLINE": "1"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "trained" / "model.safetensors").is_file()


def training(folder: Path) -> list[str]:
    """The demo, which is in the wheel; without matplotlib there are no pictures."""
    settings = {
        "config": "fashion_mnist", "max_steps": 1,
        "eval_examples": 64, "dataloader_num_workers": 0, "dataloader_persistent_workers": "false",
        "total_batch_size": 128, "report_to": "none", "output_dir": folder,
    }  # fmt: skip
    return ["train", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
