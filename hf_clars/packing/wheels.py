"""Packages for the target, unpacked into a folder by pip: nothing is left to install there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ..errors import TrainingFailedError, UserError
from .target import Target


def unpack_packages(packages: Mapping[str, str], target: Target, folder: Path, find_links: str | None = None) -> None:
    """Wheels of these versions that run on the target, unpacked.

    Args:
        packages: name → version.
        target: whose Python and platform the wheels must suit.
        folder: where they go; on Python's path it makes them importable.
        find_links: a folder of wheels to take them from, instead of the package index.

    Raises:
        UserError: no pip here; no such folder.
        TrainingFailedError: pip failed, in its own words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not packages:
        return
    if next(iter(metadata.distributions(name="pip")), None) is None:  # importing it would be noticed by setuptools
        raise UserError(f"packing needs pip: {sys.executable} -m ensurepip")
    options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    if not target.is_like_here:
        options += ["--python-version", target.python, "--implementation", "cp"]
        options += [word for tag in target.platforms for word in ("--platform", tag)]
    if find_links is not None:
        if not Path(os.path.expanduser(find_links)).is_dir():
            raise UserError(f"--find_links {find_links}: no such folder")
        options += ["--no-index", "--find-links", str(Path(os.path.expanduser(find_links)).resolve())]
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", str(folder), *wanted]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pip-") as beside:  # on the disk that they are for
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": beside})
    if done.returncode:
        raise TrainingFailedError(f"pip cannot get the packages: {_last_error(done.stderr)}")
    shutil.rmtree(folder / "bin", ignore_errors=True)  # scripts, which look for the Python of this machine


def _last_error(output: str) -> str:
    """What pip says in the end, and what it does not say clearly."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return "No space left on device"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    message = (errors or lines or ["it does not say why"])[-1]
    offline = any(word in line for line in lines for word in ("establish a new connection", "NameResolutionError"))
    return f"{message} (the package index cannot be reached)" if offline else message[:300]
