"""A Python that has torch, transformers, accelerate and what these need, and nothing else; and wheels of what it lacks.

Both are made of what is installed here, so nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BARE = ("torch", "transformers", "accelerate")


def closure(names: Iterable[str]) -> set[str]:
    """These packages, and what they need of what is installed here."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        try:
            needs = distribution(requirement.name).requires or []
        except PackageNotFoundError:  # of another platform or a newer release
            continue
        if (name := canonicalize_name(requirement.name)) in found and not requirement.extras:
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                waiting.append(need)
    return found


def bare_python(folder: Path) -> Path:
    """The interpreter of a new environment, whose site-packages has links to these packages alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    there = next(folder.glob("lib/python3*/site-packages"))
    for name in closure(BARE):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            source = Path(str(package.locate_file(top)))
            if source.exists() and not (there / top).exists():
                (there / top).symlink_to(source)
    return folder / "bin" / "python"


def write_wheel(name: str, folder: Path) -> Path:
    """A wheel of an installed package, as `pip` installs it; not compressed."""
    package = distribution(name)
    wheel = folder / f"{name.replace('-', '_')}-{package.version}-{_tags(package)}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in package.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(str(package.locate_file(file)), str(file))
    return wheel


def _tags(package: Distribution) -> str:
    lines = (package.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ").split("-") for line in lines if line.startswith("Tag: ")]
    return "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))


def without_network() -> list[str]:
    """Words in front of a command that take its network away, where this user may; none otherwise."""
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "--net", "true"], capture_output=True).returncode == 0:
        return [unshare, "--net"]
    return []
