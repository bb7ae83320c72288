"""The machine that a pack is for: its Python, and which packages it has."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.utils import canonicalize_name

from ..errors import UserError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\s*==\s*|\s+)([0-9][^\s;]*)")  # of pip freeze, of pip list
_OLDEST_GLIBC, _USUAL_GLIBC = 17, 28  # 2.17 is manylinux2014; 2.28 is what PyTorch's own wheels need


@dataclass(frozen=True)
class Target:
    """What is known about it.

    Attributes:
        environment: PEP 508's markers: `python_version`, `platform_machine`, …
        packages: what it has: canonical name → version; None where nobody said, and torch, transformers, accelerate and
            what these need are assumed.
        platforms: pip's tags of wheels that run there; none where those of this machine do.
    """

    environment: Mapping[str, str]
    packages: Mapping[str, str] | None
    platforms: tuple[str, ...]

    @property
    def python(self) -> str:
        """`3.12`."""
        return self.environment["python_version"]

    @property
    def is_like_here(self) -> bool:
        """Whether pip needs not be told for whom it chooses wheels."""
        return not self.platforms and self.python == f"{sys.version_info[0]}.{sys.version_info[1]}"


def read_target(packages: str | None = None, python: str | None = None, tag: str | None = None) -> Target:
    """The machine, from what is known about it.

    Args:
        packages: a file: the output of `pip inspect` there, which says which Python it is, too; or of `pip freeze` or
            `pip list`.
        python: its Python, `3.12`; by default what `pip inspect` said, or the one that runs this.
        tag: the platform tag of wheels for it, `manylinux_2_28_x86_64`; by default that of this machine.

    Raises:
        UserError: no such file; not what pip writes; a version or a tag of another form.
    """
    environment: dict[str, Any] = dict(default_environment())
    found: dict[str, str] | None = None
    if packages is not None:
        markers, found = _read(Path(os.path.expanduser(packages)))
        environment |= markers
    if python is not None:
        if not re.fullmatch(r"3\.\d+", python):
            raise UserError(f"--python {python}: write a version such as 3.12")
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    there = (environment["platform_system"], environment["platform_machine"])
    if tag is None and there != (platform.system(), platform.machine()):
        if there[0] != "Linux":
            raise UserError(f"wheels for {' '.join(there)} need their tag: --platform macosx_14_0_arm64, for example")
        tag = f"manylinux_2_{_USUAL_GLIBC}_{there[1]}"
    if tag is None:
        return Target(environment, found, ())
    machine, platforms = _platforms(tag)
    return Target({**environment, **machine}, found, platforms)


def _platforms(tag: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a tag says about the machine, and the tags of what runs on it.

    Wheels for an older glibc run with a newer one, which pip only knows of its own machine.
    """
    if match := re.fullmatch(r"manylinux_2_(\d+)_(\w+)", tag):
        minors = range(int(match[1]), _OLDEST_GLIBC - 1, -1)
        tags = (*(f"manylinux_2_{minor}_{match[2]}" for minor in minors), f"manylinux2014_{match[2]}")
        return {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": match[2]}, tags
    if match := re.fullmatch(r"macosx_\d+_\d+_(arm64|x86_64)", tag):
        return {"platform_system": "Darwin", "sys_platform": "darwin", "platform_machine": match[1]}, (tag,)
    raise UserError(f"--platform {tag}: write manylinux_2_28_x86_64, for its glibc and processor, or macosx_14_0_arm64")


def _read(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--target_packages {file} cannot be read: {getattr(error, 'strerror', error)}") from None
    if text.lstrip().startswith("{"):
        try:
            report = json.loads(text)
            markers = {str(k): str(v) for k, v in report["environment"].items()}
            installed = [entry["metadata"] for entry in report["installed"]]
            found = {str(canonicalize_name(each["name"])): str(each["version"]) for each in installed}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"--target_packages {file} is not what `python3 -m pip inspect` writes") from None
    else:
        matches = [_LINE.match(line.strip()) for line in text.splitlines()]
        markers, found = {}, {str(canonicalize_name(m[1])): m[2] for m in matches if m is not None}
    if not found:
        raise UserError(
            f"--target_packages {file} names no packages: have `python3 -m pip inspect` write it on that machine"
        )
    return markers, found
