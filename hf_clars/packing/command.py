"""`hf-clars pack`: this package, what it needs and data, for a machine with torch and transformers and no network."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import tempfile
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import __version__
from ..errors import TrainingFailedError, UserError
from ..runtime.provenance import COMMIT_FILE, commit
from ..safety.links import first_foreign
from .archive import compression_of, sha256, stem_of, write_archive, write_sums
from .closure import Closure, what_it_lacks
from .data import copy_data, find_data
from .target import Target, read_target
from .wheels import unpack_packages

_PACKAGE = Path(__file__).resolve().parents[1]
_RECIPES = _PACKAGE.parent / "recipes"  # where this is a checkout
_PER_MB = 10**6
_NOT_OURS = {".zip", ".gz", ".xz", ".bz2", ".zst", ".tgz", ".txz", ".tbz2", ".7z"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="hf-clars-pack", help="a folder, or a file: pack.tar, .tar.gz or .tar.xz")
    parser.add_argument("--part_mb", type=float, help="cut the file into parts of at most so many megabytes")
    parser.add_argument(
        "--dataset", nargs="+", default=[], help="data sets to take along: uoft-cs/cifar10, or a folder"
    )
    parser.add_argument("--data_dir", help="folder with data sets by name (cifar10/, …); others come from the Hub")
    parser.add_argument(
        "--target_packages",
        metavar="FILE",
        help="what the target has: the output of `python3 -m pip inspect` there, or of `pip freeze`; by default torch, "
        "transformers, accelerate and what they need, and the Python that runs this",
    )
    parser.add_argument("--python", metavar="3.N", help="the target's Python")
    parser.add_argument("--platform", metavar="TAG", help="of wheels for the target: manylinux_2_28_x86_64")
    parser.add_argument("--extras", nargs="+", default=[], metavar="NAME", help="of hf_clars: plots, …")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="packages to leave out: wandb")
    parser.add_argument("--find_links", metavar="FOLDER", help="take wheels from this folder, not from the index")


def pack(options: Namespace) -> None:
    """What the command does.

    Raises:
        UserError: see `read_target`, `what_it_lacks` and `find_data`; parts of a folder; something at `--out`.
        TrainingFailedError: pip failed, the Hub cannot be reached, or the disk is full; nothing is left at `--out`.
    """
    out = Path(os.path.expanduser(options.out))
    if compression_of(out) is None and (suffix := out.suffix.lower()) in _NOT_OURS:
        raise UserError(f"--out {out}: {suffix} is not written: choose .tar, .tar.gz or .tar.xz, or a folder")
    if not stem_of(out):
        raise UserError(f"--out {out} has no name before its suffix: pack{out.name}, for example")
    part_bytes = _part_bytes(options.part_mb, out)
    sums = [] if part_bytes is None else [out.with_name(f"{out.name}.sha256")]
    for there in [out, *sorted(out.parent.glob(f"{out.name}.[0-9][0-9][0-9]")), *sums]:
        if there.exists():
            raise UserError(f"--out {there} exists: remove it, or name another one")
    for source in (_PACKAGE, _RECIPES):
        if source.is_dir() and (foreign := first_foreign(source)):
            raise UserError(f"{foreign}: a pack holds copies of our own files alone")
    target = read_target(options.target_packages, options.python, options.platform)
    closure = what_it_lacks(target, options.extras, options.without)
    data = find_data(options.dataset, options.data_dir)
    for name, source in data.items():
        if out.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"--out {out} is in the data set {name}, which would be copied into itself: name another one"
            )
    with _clear_errors(out), _sigterm_is_ctrl_c():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".hf-clars-pack-") as beside:
            folder = Path(beside) / stem_of(out)
            folder.mkdir()
            print(f"packages: {', '.join(f'{n} {v}' for n, v in closure.packed.items()) or 'none'}", flush=True)
            unpack_packages(closure.packed, target, folder / "site", options.find_links)
            copy_data(data, folder / "data")
            _add_ours(folder, target, closure)
            write_sums(folder)
            if compression_of(out) is None:
                folder.rename(out)
                written = [out]
            else:
                written = _archived(folder, out, part_bytes, Path(beside))
    _say(out, written, options.dataset)


def _part_bytes(megabytes: float | None, out: Path) -> int | None:
    if megabytes is None:
        return None
    if compression_of(out) is None:
        raise UserError(f"--part_mb cuts a file: --out {out}.tar.gz, for example")
    if not 1 <= megabytes * _PER_MB < math.inf:
        raise UserError(f"--part_mb {megabytes:g} must be above 0" + (" and finite" if megabytes > 0 else ""))
    return int(megabytes * _PER_MB)


def _add_ours(folder: Path, target: Target, closure: Closure) -> None:
    """This package as it is here, its recipes where this is a checkout, and what makes them run there."""
    nothing = shutil.ignore_patterns("__pycache__", "*.pyc")
    ours = folder / "site" / _PACKAGE.name
    shutil.copytree(_PACKAGE, ours, ignore=nothing)
    (ours / COMMIT_FILE).write_text(commit() + "\n")
    if (_RECIPES / "imagenet_clars.py").is_file():
        shutil.copytree(_RECIPES, folder / "recipes", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "results"))
    else:
        print("without recipes/: this hf_clars is installed, and they are in its checkout", flush=True)
    for file in ("run", "check.py"):
        shutil.copy(_PACKAGE / "packing" / "on_target" / file, folder)
    (folder / "run").chmod(0o755)
    there = [target.python, target.environment["platform_system"], target.environment["platform_machine"]]
    about = {
        "version": __version__, "commit": commit(), "for": there, "needs": closure.needs, "packages": closure.packed,
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(about, indent=2) + "\n")


def _archived(folder: Path, out: Path, part_bytes: int | None, beside: Path) -> list[Path]:
    """The archive in its place, whole; with its checksums beside it where it is in parts."""
    made = write_archive(folder, beside / out.name, part_bytes)
    if part_bytes is not None:
        sums = beside / f"{out.name}.sha256"
        sums.write_text("".join(f"{sha256(part)}  {part.name}\n" for part in made))
        made.append(sums)
    return [part.rename(out.with_name(part.name)) for part in made]


def _say(out: Path, written: list[Path], datasets: list[str]) -> None:
    size = sum(p.stat().st_size for top in written for p in ([top] if top.is_file() else top.rglob("*")) if p.is_file())
    names = [path.name for path in written]
    if len(names) > 4:  # parts, and their checksums
        names = [names[0], "…", *names[-2:]]
    print(f"{', '.join(names)}: {size / _PER_MB:,.0f} MB, with {', '.join(datasets) or 'no data'}")
    file, folder = shlex.quote(out.name), shlex.quote(stem_of(out))
    if len(written) > 1:
        print(f"there: sha256sum --check {file}.sha256 && cat {file}.[0-9]* > {file}")
    if compression_of(out) is not None:
        print(f"there: tar xf {file}    (or python3 -m tarfile -e {file})")
    print(f"there: {folder}/run figure 1 --preset paper, for example: it takes what hf-clars takes")


@contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except shutil.Error as error:  # `[(from, to, "[Errno 28] No space left on device: …"), …]`
        reason = str(error.args[0][0][2])
        reason = reason.partition("] ")[2].partition(":")[0] or reason
        raise TrainingFailedError(f"{out} cannot be written: {reason}") from error
    except OSError as error:
        raise TrainingFailedError(f"{out} cannot be written: {error.strerror or error}") from error


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """So that it leaves nothing behind, neither half a pack nor pip at work on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
