"""Wheels of hf_clars and of what a machine without network lacks, for `pip install` there.

    python3 -m pip inspect > target.json                               # on that machine
    python recipes/carry.py target.json wheels [--extras plots]        # in a checkout, with network
    python3 -m pip install --no-index --no-deps wheels/*.whl           # on that machine again

pip chooses the versions. What the machine has is kept and not downloaded: pip is shown an empty wheel in its place.
`--replace tqdm` carries what is too old there. pip's environment variables hold.
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


def tags_of(machine: str) -> list[str]:
    """Tags of the wheels that run on Linux there, those for an older glibc included."""
    versions = (*(f"_2_{minor}" for minor in range(28, 16, -1)), "2014")  # 2.28 is what PyTorch's own wheels need
    return [f"manylinux{version}_{machine}" for version in versions]


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
        report = json.loads(Path(options.target).read_text(encoding="utf-8"))
        system, machine = report["environment"]["platform_system"], report["environment"]["platform_machine"]
        there = report["environment"]["python_version"]
        # Of two packages of a name the first one is imported.
        installed = {normalized(each["metadata"]["name"]): each["metadata"] for each in reversed(report["installed"])}
    except (OSError, ValueError, KeyError, TypeError):
        parser.exit(2, f"error: {options.target} is not what `python3 -m pip inspect` writes\n")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if there != here:  # off which pip reads the markers of requirements
        parser.exit(2, f"error: the target has Python {there}, and this is {here}: run it with that version\n")
    if system != "Linux" and not options.platform:
        parser.exit(2, f"error: wheels for {system} {machine} need their tag: --platform macosx_14_0_arm64, say\n")
    chosen = ["--only-binary=:all:", "--python-version", there, "--implementation", "cp"]
    chosen += [word for tag in options.platform or tags_of(machine) for word in ("--platform", tag)]
    given_up = {"hf-clars", *map(normalized, options.replace)}
    with tempfile.TemporaryDirectory() as folder:
        stubs = Path(folder, "stubs")
        stubs.mkdir()
        kept = [write_stub(package, stubs) for name, package in installed.items() if name not in given_up]
        Path(folder, "constraints.txt").write_text("".join(kept), encoding="utf-8")
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT))
        ours = f"hf_clars[{options.extras}] @ {next(Path(folder).glob('*.whl')).as_uri()}"
        pip("download", *chosen, "--constraint", f"{folder}/constraints.txt", "--dest", str(options.wheels), ours)
        for stub in stubs.iterdir():
            (options.wheels / stub.name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
