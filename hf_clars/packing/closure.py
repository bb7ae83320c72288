"""Which packages a target lacks: what hf_clars needs, and what these need, in the versions that are installed here.

Versions that run together here run together there, so nothing is resolved anew. Only torchvision follows the target's
torch, which it is built for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..errors import UserError
from .target import Target

_OURS = "hf-clars"
_THERE = ("torch", "transformers", "accelerate")  # what makes a target; never packed
_TORCHVISION = 15  # torch 2.N is torchvision 0.(N + 15)'s


@dataclass(frozen=True)
class Closure:
    """What to pack, and what must be there.

    Attributes:
        packed: name → version, of what the target lacks.
        needs: requirements that the target's own packages must meet.
    """

    packed: Mapping[str, str]
    needs: tuple[str, ...]


def what_it_lacks(target: Target, extras: Iterable[str] = (), without: Iterable[str] = ()) -> Closure:
    """Walks from hf_clars along what each package says it needs, and no further than what the target has.

    A package of the target that is too old for another one is packed, and found first there.

    Args:
        target: what it has; by default torch, transformers, accelerate and what these need.
        extras: of hf_clars: `plots`, …
        without: packages to leave out, with what they alone need.

    Raises:
        UserError: hf_clars, or something that it needs, is not installed here; the target's Python, torch,
            transformers or accelerate do not do; an extra that hf_clars does not have; a package to leave out that it
            does not need, or that must be there.
    """
    has: Mapping[str, str | None] = _assumed(target) if target.packages is None else target.packages
    left_out, left = {canonicalize_name(name) for name in without}, set()
    for name in left_out.intersection(_THERE):
        raise UserError(f"--without {name}: it would not be packed, and must be there")
    _python_does(target)
    packed: dict[str, str] = {}
    needs: list[Requirement] = []
    waiting, walked = _needed_by(_OURS, _known(extras), target), set()
    while waiting:
        requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name in left_out:
            left.add(name)
        elif name in has and _does(has[name], requirement):
            needs.append(requirement)
        elif name in _THERE:
            there = has.get(name)
            raise UserError(
                f"the target has {name} {there}, and {requirement} is needed" if there else f"the target lacks {name}"
            )
        elif (step := (name, *sorted(requirement.extras))) not in walked:
            walked.add(step)
            further = _needed_by(name, requirement.extras, target)
            packed[name] = distribution(name).version
            if name == "torchvision" and (torch := has.get("torch")) is not None:
                packed[name] = _torchvision_for(torch, packed[name])
                further = [r for r in further if r.name != "torch"] + [Requirement(f"torch=={Version(torch).public}")]
            waiting += further
    if left_out - left:
        raise UserError(f"--without {min(left_out - left)}: it would not be packed")
    kept = {f"{canonicalize_name(r.name)}{r.specifier}" for r in needs if canonicalize_name(r.name) not in packed}
    return Closure(packed, tuple(sorted(kept)))


def _python_does(target: Target) -> None:
    try:
        wanted = distribution(_OURS).metadata["Requires-Python"]
    except PackageNotFoundError:
        return  # which is said soon
    python = target.environment["python_full_version"]
    if wanted and not SpecifierSet(wanted).contains(python, prereleases=True):
        raise UserError(f"the target has Python {python}, and hf_clars needs {wanted}: name another one with --python")


def _assumed(target: Target) -> dict[str, str | None]:
    """Of unknown versions, which are looked at on the target."""
    names: dict[str, str | None] = dict.fromkeys(_THERE)
    waiting = list(names)
    while waiting:
        for requirement in _needed_by(waiting.pop(), (), target, installed=False):
            if (name := canonicalize_name(requirement.name)) not in names:
                names[name] = None
                waiting.append(name)
    return names


def _needed_by(name: str, extras: Iterable[str], target: Target, installed: bool = True) -> list[Requirement]:
    """What a package says that it needs where the target is; nothing of one that may be missing here and is."""
    try:
        texts = distribution(name).requires or []
    except PackageNotFoundError:
        if not installed:
            return []
        raise UserError(f"{name} is not installed here, so that it cannot be packed: pip install {name}") from None
    environments = [{**target.environment, "extra": extra} for extra in ("", *extras)]
    found = [Requirement(text) for text in texts]
    return [r for r in found if r.marker is None or any(r.marker.evaluate(each) for each in environments)]


def _known(extras: Iterable[str]) -> list[str]:
    try:
        known = distribution(_OURS).metadata.get_all("Provides-Extra") or []
    except PackageNotFoundError:
        raise UserError("hf_clars is not installed here: pip install . in its checkout") from None
    for extra in extras:
        if extra not in known:
            raise UserError(f"--extras {extra}: hf_clars has {', '.join(known)}")
    return list(extras)


def _does(version: str | None, requirement: Requirement) -> bool:
    try:
        return version is None or requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def _torchvision_for(torch: str, ours: str) -> str:
    """The version for the target's torch; `ours` is for the torch here."""
    there, here = Version(torch), Version(distribution("torch").version)
    if there.release == here.release:
        return ours
    return f"0.{there.minor + _TORCHVISION}.{there.micro}"
