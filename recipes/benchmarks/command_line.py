"""What the benchmarks have in common as commands: they run from a checkout, and a user's mistake is one line.

To be imported before `hf_clars`, which it finds beside itself where it is not installed.
"""

import argparse
import importlib.util
import json
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("hf_clars") is None:
    sys.path.insert(1, str(ROOT))
try:
    import torch

    from hf_clars.errors import UserError
    from hf_clars.runtime.provenance import commit, hardware
    from hf_clars.validation.checks import writable_folder
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed, which hf_clars needs: pip install {error.name}", file=sys.stderr)
    raise SystemExit(2) from None


def run(main: Callable[[], int | None]) -> None:
    """Run a command: exit status 2 and one line for what the user can mend."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)


class Parser(argparse.ArgumentParser):
    """Whose errors are ours."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(" ".join(message.removeprefix("argument ").split()))

    def add_device(self) -> None:
        self.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")


def count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def device(text: str) -> str:
    if text != "cpu" and not (text.startswith("cuda") and torch.cuda.is_available()):
        raise ArgumentTypeError(f"{text} is not available here: choose cpu, or cuda with a GPU")
    return text


def timm_model(text: str) -> str:
    import timm

    if not timm.is_model(text):
        raise ArgumentTypeError(f"{text} is no timm model")
    return text


def file(text: str) -> str:
    """That can be written in the end."""
    if Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is a folder: name a file in it")
    writable_folder(f"{text}: folder", Path(text).absolute().parent)
    return text


def about(options: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """What was measured, of which commit, on which hardware, with which versions; printed, too."""
    command = " ".join(["python", *(argument.replace(f"{ROOT}/", "") for argument in sys.argv)])
    on_cpu = not getattr(options, "device", "cpu").startswith("cuda")
    found = {"command": command, "commit": commit(), "hardware": hardware({"use_cpu": on_cpu}, torch.get_num_threads())}
    found |= {"versions": {package: _version(package) for package in ("torch", *packages)}, "options": vars(options)}
    print(f"{command}\ncommit {found['commit']}, {found['hardware']['device']}, {os.cpu_count()} cores")
    print(", ".join(f"{package} {number or '(absent)'}" for package, number in found["versions"].items()), flush=True)
    return found


def show(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """A table of what rows have, but for lists and what none has."""
    import pandas

    table = pandas.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])
    text = table.dropna(axis=1, how="all").to_string(index=False, float_format=_number, na_rep="-")
    print(f"\n{title}\n{text}", flush=True)


def write(path: str | Path, result: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _number(value: float) -> str:
    return f"{value:,.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.0e}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
