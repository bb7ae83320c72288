"""`hf-clars pack`: what a target lacks, one folder or parts of a file, and the pack at work on a bare machine."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

import hf_clars
from hf_clars import TrainingFailedError, UserError
from hf_clars.cli import main
from hf_clars.packing.archive import write_archive, write_sums
from hf_clars.packing.closure import what_it_lacks
from hf_clars.packing.data import copy_data, find_data
from hf_clars.packing.target import read_target
from hf_clars.runtime.provenance import commit

from .bare_machine import bare_python, without_network, write_wheel
from .hub import NAME, serving
from .test_recipe import write_parquet

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
FREEZE = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True).stdout


@pytest.fixture
def everything(tmp_path) -> Path:
    """What `pip freeze` says here: a target that lacks nothing."""
    file = tmp_path / "freeze.txt"
    file.write_text(FREEZE)
    return file


def has(folder: Path, **packages: str) -> Path:
    """A target's packages, as `pip freeze` has them: what is here, but for these; None for one that is not there."""
    lines = [line for line in FREEZE.splitlines() if line.partition("==")[0] not in packages]
    file = folder / "target.txt"
    file.write_text("\n".join(lines + [f"{name}=={there}" for name, there in packages.items() if there]))
    return file


# ---- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "freeze", "list"])
def test_what_pip_says_on_the_target(tmp_path, command):
    """The real output of each; `inspect` says which Python it is, too."""
    said = subprocess.run([sys.executable, "-m", "pip", command], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "target"
    file.write_text(said.replace(f'"python_version": "{PYTHON}"', '"python_version": "3.99"'))
    target = read_target(str(file))
    assert target.packages is not None
    for name in ("torch", "transformers", "huggingface-hub", "pyyaml"):
        assert target.packages[name] == version(name)
    assert target.python == ("3.99" if command == "inspect" else PYTHON)
    assert target.is_like_here == (command != "inspect")


def test_wheels_for_another_machine(tmp_path):
    target = read_target(python="3.14", tag="manylinux_2_19_aarch64")
    assert target.platforms == (
        "manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64",
    )  # fmt: skip
    assert (target.python, target.is_like_here) == ("3.14", False)
    assert (target.environment["platform_system"], target.environment["platform_machine"]) == ("Linux", "aarch64")
    environment = {**read_target().environment, "platform_machine": "riscv64", "platform_system": "Linux"}
    file = tmp_path / "inspect.json"
    installed = [{"metadata": {"name": "torch", "version": "2.11.0"}}]
    file.write_text(json.dumps({"environment": environment, "installed": installed}))
    assert read_target(str(file)).platforms[0] == "manylinux_2_28_riscv64"
    arm = read_target(str(file), tag="macosx_14_0_arm64")
    assert arm.platforms == ("macosx_14_0_arm64",)
    assert (arm.environment["sys_platform"], arm.environment["platform_machine"]) == ("darwin", "arm64")
    file.write_text(file.read_text().replace('"Linux"', '"Darwin"'))
    with pytest.raises(UserError, match=r"wheels for Darwin riscv64 need their tag: --platform"):
        read_target(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "names no packages: have `python3 -m pip inspect` write it"),
        ("{}", "is not what `python3 -m pip inspect` writes"),
        ('{"environment": [], "installed": 3}', "is not what `python3 -m pip inspect` writes"),
        ("{torch", "is not what `python3 -m pip inspect` writes"),
        (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec"),
    ],
)
def test_files_that_pip_did_not_write(tmp_path, content, message):
    file = tmp_path / "target"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_target(str(file))


@pytest.mark.parametrize(("python", "tag"), [("3", None), ("2.7", None), (None, "many linux"), (None, "win_amd64")])
def test_targets_that_cannot_be(python, tag):
    with pytest.raises(UserError, match=r"write (a version|manylinux)"):
        read_target(python=python, tag=tag)


# ---- what it lacks ---------------------------------------------------------------------------------------------------


def test_a_bare_target_lacks_what_torch_and_transformers_do_not_bring():
    closure = what_it_lacks(read_target())
    assert {"timm", "datasets", "pyarrow", "torchvision", "wandb", "pillow"} <= closure.packed.keys()
    assert not {"torch", "transformers", "accelerate", "numpy", "huggingface-hub"} & closure.packed.keys()
    assert not any(name.startswith(("nvidia", "hf-clars")) for name in closure.packed)
    assert all(packed == version(name) for name, packed in closure.packed.items())
    assert "torch>=2.11" in closure.needs
    assert "transformers>=5.17" in closure.needs
    lean = what_it_lacks(read_target(), without=["wandb"])
    assert not {"wandb", "protobuf"} & lean.packed.keys()
    assert "matplotlib" in what_it_lacks(read_target(), extras=["plots"]).packed


def test_a_target_that_has_everything(everything):
    assert what_it_lacks(read_target(str(everything))).packed == {}


def test_torchvision_follows_the_targets_torch(tmp_path):
    file = has(tmp_path, torch="2.11.1+cu128", torchvision="")
    closure = what_it_lacks(read_target(str(file)))
    assert closure.packed == {"torchvision": "0.26.1"}
    assert "torch==2.11.1" in closure.needs


def test_what_is_too_old_is_packed_and_torch_cannot_be(tmp_path):
    closure = what_it_lacks(read_target(str(has(tmp_path, tqdm="4.1"))))
    assert closure.packed == {"tqdm": version("tqdm")}
    assert not any(need.startswith("tqdm") for need in closure.needs)
    with pytest.raises(UserError, match=r"the target has torch 2.6.0, and torch>=2.11 is needed"):
        what_it_lacks(read_target(str(has(tmp_path, torch="2.6.0"))))
    with pytest.raises(UserError, match="the target lacks transformers"):
        what_it_lacks(read_target(str(has(tmp_path, transformers=""))))


def test_what_cannot_be_left_out_or_added(everything):
    with pytest.raises(UserError, match="--without wandb2: it would not be packed"):
        what_it_lacks(read_target(), without=["wandb2"])
    with pytest.raises(UserError, match=r"--extras plot: hf_clars has .*plots"):
        what_it_lacks(read_target(), extras=["plot"])


# ---- data ------------------------------------------------------------------------------------------------------------


def test_data_sets_by_name_and_by_folder(tmp_path):
    for name in ("cifar10", "own/pictures"):
        write_parquet(tmp_path / name, {"train": 4})
    found = find_data(["uoft-cs/cifar10", str(tmp_path / "own" / "pictures") + "/"], str(tmp_path))
    assert {name: path.name for name, path in found.items()} == {"cifar10": "cifar10", "pictures": "pictures"}
    copy_data(found, tmp_path / "data")
    assert (tmp_path / "data" / "cifar10" / "train-00000-of-00001.parquet").stat().st_size > 1000


@pytest.mark.parametrize(
    ("names", "data_dir", "kind", "message"),
    [
        (["a/cifar10", "b/cifar10"], ".", UserError, "b/cifar10: there is another one called 'cifar10'"),
        (["./none"], None, UserError, "--dataset ./none: no such folder"),
        (["x"], "none", UserError, "--data_dir none: no such folder"),
        (["void"], ".", UserError, "--dataset void: void is empty"),
        (["nobody/nothing"], ".", TrainingFailedError, "nobody/nothing: the Hub cannot be reached, and its cache lac"),
        (["a b"], ".", UserError, "--dataset a b: Repo id must use alphanumeric"),
    ],
)
def test_data_sets_that_cannot_be_packed(tmp_path, monkeypatch, names, data_dir, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    write_parquet(tmp_path / "cifar10", {"train": 1})
    with pytest.raises(kind, match=message):
        find_data(names, data_dir)


@pytest.mark.slow
def test_a_data_set_on_the_hub(tmp_path):
    """By the real client, from a server that answers as the Hub does."""
    files = write_parquet(tmp_path / "served", {"train": 4})
    code = (
        "import sys; from pathlib import Path; from hf_clars.packing.data import *; "
        "copy_data(find_data([sys.argv[1]]), Path(sys.argv[2]))"
    )
    with serving(files) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
                       "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        run = [sys.executable, "-c", code, NAME, str(tmp_path / "data")]
        done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for file in files.iterdir():
        copy = tmp_path / "data" / "pictures" / file.name
        assert copy.read_bytes() == file.read_bytes()
        assert not copy.is_symlink()


# ---- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_parts_that_cat_joins(tmp_path, suffix):
    folder = tmp_path / "a b"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "x").write_bytes(os.urandom(30_000))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    write_sums(folder)
    parts = write_archive(folder, tmp_path / f"pack{suffix}", 7_000)
    assert [part.name for part in parts] == [f"pack{suffix}.{i:03d}" for i in range(len(parts))]
    assert len(parts) > 4
    assert {part.stat().st_size for part in parts[:-1]} == {7_000}
    assert parts[-1].stat().st_size <= 7_000
    joined = "cat pack.tar*.[0-9]* > joined && tar xf joined && cd pack && sha256sum --check SHA256SUMS"
    done = subprocess.run(["sh", "-c", joined], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "c/x: OK\nrun: OK\n"), done.stderr
    assert os.access(tmp_path / "pack" / "run", os.X_OK)
    with pytest.raises(UserError, match="more than 1,000 parts"):  # whose names would not sort as they follow
        write_archive(folder, tmp_path / f"many{suffix}", 10)


# ---- packing ---------------------------------------------------------------------------------------------------------


def packed(out: Path, *flags: object) -> int:
    return main(["pack", "--out", str(out), *map(str, flags)])


def run(pack: Path, folder: Path, *words: str, python: str | Path = sys.executable, **environment: str):
    """`run` as somebody starts it in `folder`, with variables that show that nothing is fetched."""
    folder.mkdir(exist_ok=True)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS")}
    return subprocess.run(
        [*without_network(), str(pack / "run"), *words],
        cwd=folder, env={**kept, **nowhere, "PYTHON": str(python), "PIP_NO_INDEX": "1", **environment},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_pack(tmp_path_factory) -> Path:
    """For a machine that has everything: this package alone, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("small pack")
    (folder / "freeze.txt").write_text(FREEZE)
    write_parquet(folder / "cifar10", {"train": 8, "test": 4})
    out = folder / "a pack"
    assert packed(out, "--target_packages", folder / "freeze.txt", "--dataset", folder / "cifar10") == 0
    return out


def test_what_is_in_a_pack(small_pack):
    assert sorted(path.name for path in small_pack.iterdir()) == [
        "SHA256SUMS", "check.py", "data", "pack.json", "recipes", "run", "site",
    ]  # fmt: skip
    assert [path.name for path in (small_pack / "site").iterdir()] == ["hf_clars"]
    assert (small_pack / "recipes" / "sweeps" / "cifar10_8192.yaml").is_file()
    assert not (small_pack / "recipes" / "results").exists()
    assert not list(small_pack.rglob("*.pyc"))
    assert not list(small_pack.parent.glob(".hf-clars-pack*"))
    about = json.loads((small_pack / "pack.json").read_text())
    assert about["for"] == [PYTHON, platform.system(), platform.machine()]
    assert about["commit"] == commit()


@pytest.mark.slow
def test_it_runs_the_packed_code_and_knows_its_commit(small_pack, tmp_path):
    (tmp_path / "hf_clars").mkdir()
    (tmp_path / "hf_clars" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    code = "import hf_clars, hf_clars.runtime.provenance as p; print(hf_clars.__file__, p.commit())"
    done = run(small_pack, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"hf_clars {hf_clars.__version__}\n"), done.stderr
    site = small_pack / "site"
    done = run(small_pack, tmp_path, "python", "-P", "-c", code)
    assert done.stdout.split(str(site))[1].split() == ["/hf_clars/__init__.py", commit()], done.stderr


@pytest.mark.slow
def test_grids_find_the_packed_data(small_pack, tmp_path):
    """Whose folder comes before what the user gives, so that the user's wins."""
    done = run(small_pack, tmp_path, "figure", "1", "--list", "--only", "B=8192")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no result") == 4
    done = run(small_pack, tmp_path, "figure", "1", "--list", "--data_dir", "none")
    assert (done.returncode, done.stderr) == (2, "error: --data_dir none: no such folder\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda pack: (pack / "data" / "cifar10" / "test-00000-of-00001.parquet").unlink(),
            "the pack lacks data/cifar",
        ),
        (lambda pack: (pack / "site" / "hf_clars" / "noise.py").write_text("#"), "noise.py is not as it was packed"),
        (lambda pack: (pack / "pack.json").write_text("{"), "the pack is damaged, copy it anew: Expecting"),
        (lambda pack: (pack / "SHA256SUMS").unlink(), "the pack is damaged, copy it anew: .*No such file"),
        (
            lambda pack: change(pack, "for", ["3.2", "Linux", "vax"]),
            "the pack is for Python 3.2 on Linux vax, and .* is P",
        ),
        (lambda pack: change(pack, "needs", ["torch>=99"]), "has torch [^ ]*, and torch>=99 is needed: name another"),
        (lambda pack: change(pack, "needs", ["nothing-of-this-name"]), "has no nothing-of-this-name, and nothing-of-"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(small_pack, tmp_path, harm, message):
    pack = shutil.copytree(small_pack, tmp_path / "pack", ignore=shutil.ignore_patterns(".verified"))
    harm(pack)
    done = run(pack, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(f"error: .*{message}", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def change(pack: Path, key: str, value: object) -> None:
    about = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**about, key: value}))
    sums = [line for line in (pack / "SHA256SUMS").read_text().splitlines() if not line.endswith("pack.json")]
    (pack / "SHA256SUMS").write_text("\n".join(sums) + "\n")


def test_a_pack_is_verified_once_and_a_python_must_be_there(small_pack, tmp_path):
    pack = shutil.copytree(small_pack, tmp_path / "pack", ignore=shutil.ignore_patterns(".verified"))
    check = [sys.executable, str(pack / "check.py")]
    assert subprocess.run(check).returncode == 0
    (pack / "data" / "cifar10" / "test-00000-of-00001.parquet").unlink()
    assert subprocess.run(check).returncode == 0
    (pack / ".verified").unlink()
    assert subprocess.run(check, capture_output=True).returncode == 2
    done = run(pack, tmp_path, python="/none/python3")
    assert (done.returncode, done.stderr) == (
        2, "error: there is no /none/python3: name one with PYTHON=/path/to/python3\n",
    )  # fmt: skip
    done = run(pack.rename(tmp_path / "a:b"), tmp_path)
    assert "has a colon in its name" in done.stderr


def test_mistakes_while_packing(tmp_path, everything, capsys):
    there = tmp_path / "there.tar.gz"
    Path(f"{there}.000").write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = ("--without", "wandb", "--find_links")
    for status, message, out, *flags in [
        (2, "there.tar.gz.000 exists: remove it, or name another one", there),
        (2, f"--out {empty} exists", empty),
        (2, "--part_mb cuts a file: --out ", tmp_path / "pack", "--part_mb", 5),
        (2, "--part_mb 0 must be above 0", tmp_path / "pack.tar", "--part_mb", 0),
        (2, "--find_links none: no such folder", tmp_path / "pack", *bare, "none"),
        (
            1,
            "pip cannot get the packages: No matching distribution found for datasets==",
            tmp_path / "pack",
            *bare,
            empty,
        ),
        (2, "--dataset ./x: no such folder", tmp_path / "pack", "--target_packages", everything, "--dataset", "./x"),
        (1, "cannot be written: ", Path("/proc/pack"), "--target_packages", everything),
    ]:
        assert packed(out, *flags) == status
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert message in errors[0]
    assert not (tmp_path / "pack").exists()
    assert not list(tmp_path.glob(".hf-clars-pack*"))


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path, everything):
    """A file that cannot be written fails as on a full disk; nothing is left."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); " \
              "from hf_clars.cli import main; sys.exit(main(sys.argv[1:]))"  # fmt: skip
    for out in ("pack", "pack.tar.gz"):
        command = [sys.executable, "-c", limited, "pack", "--out", out, "--target_packages", str(everything)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"error: {out} cannot be written: File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["freeze.txt"]


@pytest.mark.slow
def test_on_a_bare_machine(tmp_path, fashion_mnist):
    """From wheels in a folder to results: an environment with torch, transformers and accelerate alone, no network.

    The figure's data set is Fashion-MNIST under CIFAR-10's name, which is bundled; what it learns is not looked at.
    """
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in what_it_lacks(read_target(), without=["wandb"]).packed:
        write_wheel(name, wheels)
    shutil.copytree(fashion_mnist, tmp_path / "sets" / "cifar10")
    out = tmp_path / "for a carrier" / "a pack.tar"
    flags = (
        "--without",
        "wandb",
        "--find_links",
        wheels,
        "--dataset",
        "uoft-cs/cifar10",
        "--data_dir",
        tmp_path / "sets",
    )
    assert packed(out, *flags, "--part_mb", 60) == 0
    there = tmp_path / "over there"
    there.mkdir()
    joined = f"sha256sum --check '{out.name}.sha256' && cat '{out.name}'.[0-9]* | tar xf - -C '{there}'"
    subprocess.run(["sh", "-c", joined], cwd=out.parent, check=True, capture_output=True)
    pack, python, work = there / "a pack", bare_python(tmp_path / "bare"), tmp_path / "some where"
    lacking = "import importlib.util as u; print([n for n in ('timm', 'datasets', 'wandb') if u.find_spec(n)])"
    assert subprocess.run([python, "-c", lacking], capture_output=True, text=True).stdout == "[]\n"

    tiny = ["--set", "train_examples=64", "eval_examples=32", "total_batch_size=64", "per_device_train_batch_size=32",
            "num_train_epochs=1", "model_kwargs={width: 4}", "image_size=16"]  # fmt: skip
    done = run(pack, work, "figure", "3", "--only", "network=resnet8_cifar", "method=clars", "--threads", "1", *tiny,
               "dataset=uoft-cs/cifar10", "lr_milestones=[1]", python=python)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "matplotlib is not installed: no pictures" in done.stdout
    result = json.loads(next((work / "results" / "figure3" / "small").glob("*.json")).read_text())
    assert (result["state"], result["commit"]) == ("finished", commit())
    assert result["settings"]["dataset"] == "uoft-cs/cifar10"

    done = run(pack, work, "compare", "results/figure3/small", "--target", "0.05", python=python)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(pack, work, "compare", "wandb:somebody/something", python=python)
    assert (done.returncode, done.stderr) == (
        2, "error: wandb:somebody/something needs wandb: pip install wandb, or go without\n",
    )  # fmt: skip

    demo = [
        "--config", str(pack / "recipes" / "demo" / "fashion_mnist.yaml"), "--max_steps", "1", "--eval_examples", "64",
        "--dataloader_num_workers", "0", "--total_batch_size", "128", "--plots", "false",
    ]  # fmt: skip
    done = run(pack, work, "train", *demo, python=python)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: report_to=wandb needs wandb: pip install wandb, or go with")
    done = run(pack, work, "train", *demo, "--report_to", "none", "--output_dir", "trained", python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "trained" / "model.safetensors").is_file()
    done = run(pack, work, "figure", "3", "--draw", python=python)
    assert (done.returncode, done.stderr) == (2, "error: pictures need matplotlib: pip install matplotlib\n")


def test_more_mistakes_while_packing(tmp_path, everything, capsys, monkeypatch):
    """Each before anything is copied: one line that names the value, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.tar.sha256").write_text("of somebody")
    write_parquet(tmp_path / "set", {"train": 1})
    (tmp_path / "x.parquet").write_text("")
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    here = ("--target_packages", everything)
    for message, *flags in [
        ("--part_mb inf must be above 0 and finite", "pack.tar", *here, "--part_mb", "inf"),
        ("--out pack.zip: .zip is not written: choose .tar, .tar.gz or .tar.xz, or a folder", "pack.zip", *here),
        ("--out pack.tgz: .tgz is not written", "pack.tgz", *here),
        ("--out .tar.gz has no name before its suffix: pack.tar.gz, for example", ".tar.gz", *here),
        ("--out sums.tar.sha256 exists", "sums.tar", *here, "--part_mb", 5),
        ("--out set/pack is in the data set set, which would be copied into itself", "set/pack", *here,
         "--dataset", "./set"),
        ("--dataset x.parquet is a file: give the folder that it is in", "pack", *here, "--dataset", "x.parquet"),
        ("--dataset /: one folder is wanted", "pack", *here, "--dataset", "/"),
        ("--without torch: it would not be packed, and must be there", "pack", *here, "--without", "torch"),
        ("the target has Python 3.9.0, and hf_clars needs >=3.11: name another", "pack", *here, "--python", "3.9"),
    ]:  # fmt: skip
        assert packed(Path(flags[0]), *flags[1:]) == 2, flags
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith(f"error: {message}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_data_set_by_where_one_stands(tmp_path, monkeypatch):
    """`.` and `..` are found there under their folders' own names."""
    write_parquet(tmp_path / "cifar10", {"train": 1})
    (tmp_path / "cifar10" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "cifar10")
    assert [*find_data(["."])] == ["cifar10"]
    monkeypatch.chdir(tmp_path / "cifar10" / "sub")
    assert [*find_data(["../"])] == ["cifar10"]


def test_many_parts_are_said_in_one_short_line(tmp_path, everything, capsys):
    assert packed(tmp_path / "pack.tar", "--target_packages", everything, "--part_mb", 0.4) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert re.match(r"pack\.tar\.000, …, pack\.tar\.0\d\d, pack\.tar\.sha256: \d+ MB", line)


@pytest.mark.slow
def test_asked_to_end_while_packing(tmp_path):
    """SIGTERM amid pip's work: nothing is left, and pip has ended."""
    pip = tmp_path / "pip"
    (pip / "pip").mkdir(parents=True)
    (pip / "pip" / "__init__.py").write_text("")
    at_work = tmp_path / "at work"
    (pip / "pip" / "__main__.py").write_text(
        f"import os, time; open({str(at_work)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    out = tmp_path / "out" / "pack.tar"
    command = [sys.executable, "-m", "hf_clars", "pack", "--out", str(out)]
    path = os.pathsep.join([str(pip), str(Path(__file__).parents[1])])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (at_work.exists() and at_work.read_text()):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    assert [*out.parent.iterdir()] == []
    status = Path(f"/proc/{at_work.read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()
