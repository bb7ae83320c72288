"""Whether a pack can run here: the right Python and packages, and every file as it was packed. Exit status 0 or 2.

Run by `run` with its machine's Python, which may be any: the standard library alone, and no new syntax.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VERIFIED = os.path.join(HERE, ".verified")  # left by the first start, for the later ones


def main():
    try:
        with open(os.path.join(HERE, "pack.json")) as file:
            pack = json.load(file)
        trouble = wrong_python(pack) or damage() or missing(pack)
    except (OSError, ValueError) as error:
        trouble = f"the pack is damaged, copy it anew: {error}"
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
    return 2 if trouble else 0


def wrong_python(pack):
    here = [".".join(map(str, sys.version_info[:2])), platform.system(), platform.machine()]
    if here == pack["for"]:
        return ""
    wanted, is_there = (f"Python {version} on {system} {machine}" for version, system, machine in (pack["for"], here))
    return (
        f"the pack is for {wanted}, and {sys.executable} is {is_there}: "
        "name another one with PYTHON=/path/to/python3, or pack with --target_packages"
    )


def damage():
    if os.path.exists(VERIFIED):
        return ""
    with open(os.path.join(HERE, "SHA256SUMS"), encoding="utf-8") as file:
        lines = file.read().splitlines()
    for line in lines:
        expected, _, name = line.partition("  ")
        path = os.path.join(HERE, name)
        if not os.path.exists(path):
            return f"the pack lacks {name}: copy it anew"
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != expected:
            return f"{name} is not as it was packed: copy the pack anew"
    with contextlib.suppress(OSError):  # read-only, and verified each time
        open(VERIFIED, "w").close()
    return ""


def missing(pack):
    from importlib.metadata import PackageNotFoundError, version

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return (
            f"{sys.executable} has no packaging, which transformers needs: is it the right one? PYTHON=… names another"
        )
    for text in pack["needs"]:
        need = Requirement(text)
        try:
            there = version(need.name)
        except PackageNotFoundError:
            there = None
        if there is None or not need.specifier.contains(there, prereleases=True):
            found = f"no {need.name}" if there is None else f"{need.name} {there}"
            return (
                f"{sys.executable} has {found}, and {text} is needed: name another one with PYTHON=/path/to/python3, "
                "or let its `-m pip inspect` write down what it has, and pack with --target_packages"
            )
    return ""


if __name__ == "__main__":
    sys.exit(main())
