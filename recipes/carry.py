"""Wheels of hf_clars and of what a machine without network lacks, for `pip install` there.

    python3 -m pip inspect > target.json                               # on that machine
    python recipes/carry.py target.json wheels [--extras plots]        # in a checkout, with network
    python3 -m pip install --no-index --no-deps wheels/*.whl           # on that machine again

pip chooses the versions. What the machine has is kept and not downloaded: pip is shown an empty wheel in its place.
`--replace tqdm` carries what is too old there. pip's environment variables hold. pip reads markers such as
`python_version` off the Python that runs it, so run this with a Python of the target's version.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_GLIBC, USUAL_GLIBC = 17, 28  # 2.28 is what PyTorch's own wheels need


def tags_of(environment: dict[str, str]) -> list[str]:
    """Tags of the wheels that run there, those for an older glibc included."""
    system, machine = environment["platform_system"], environment["platform_machine"]
    if system != "Linux":
        raise SystemExit(f"error: wheels for {system} {machine} need their tag: --platform macosx_14_0_arm64, say")
    versions = [f"_2_{minor}" for minor in range(USUAL_GLIBC, OLDEST_GLIBC - 1, -1)]
    return [f"manylinux{version}_{machine}" for version in (*versions, "2014")]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write_stub(metadata: dict, folder: Path) -> str:
    """An empty wheel of a package, which needs what its extras need alone; the constraint that makes pip take it."""
    name, version = normalized(metadata["name"]).replace("-", "_"), metadata["version"]
    lines = ["Metadata-Version: 2.1", f"Name: {metadata['name']}", f"Version: {version}"]
    lines += [f"Requires-Dist: {r}" for r in metadata.get("requires_dist", []) if re.search(r"\bextra\s*==", r)]
    lines += [f"Provides-Extra: {extra}" for extra in metadata.get("provides_extra", [])]
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        about = f"{name}-{version}.dist-info"
        archive.writestr(f"{about}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return f"{name} @ {wheel.as_uri()}\n"


def pip(*arguments: str) -> None:
    if status := subprocess.run([sys.executable, "-m", "pip", *arguments]).returncode:
        raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="what `python3 -m pip inspect` wrote on the machine without network")
    parser.add_argument("wheels", type=Path, help="folder for the wheels")
    parser.add_argument("--extras", default="", metavar="NAMES", help="of hf_clars: plots,fast")
    parser.add_argument("--platform", nargs="+", metavar="TAG", help="default: Linux with glibc 2.28, as the target is")
    parser.add_argument("--replace", nargs="+", default=[], metavar="NAME", help="packages to carry though it has them")
    options = parser.parse_args()
    try:
        report = json.loads(Path(options.target).read_text())
        environment, installed = report["environment"], [entry["metadata"] for entry in report["installed"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(f"error: {options.target} is not what `python3 -m pip inspect` writes") from None
    given_up = {"hf-clars", *map(normalized, options.replace)}
    chosen = ["--only-binary=:all:", "--python-version", environment["python_version"], "--implementation", "cp"]
    chosen += [word for tag in options.platform or tags_of(environment) for word in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as folder:
        stubs, found = Path(folder, "stubs"), Path(folder, "found")
        stubs.mkdir()
        there = {normalized(package["name"]): package for package in reversed(installed)}  # the first one is imported
        kept = [write_stub(package, stubs) for name, package in there.items() if name not in given_up]
        Path(folder, "constraints.txt").write_text("".join(kept))
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(found), str(ROOT))
        ours = f"hf_clars[{options.extras}] @ {next(found.glob('hf_clars-*.whl')).as_uri()}"
        pip("download", *chosen, "--constraint", f"{folder}/constraints.txt", "--dest", str(found), ours)
        options.wheels.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(found.glob("*.whl")):
            if not (stubs / wheel.name).exists():
                (options.wheels / wheel.name).write_bytes(wheel.read_bytes())


if __name__ == "__main__":
    main()
