"""What the benchmarks have in common as commands: they run from a checkout, and a user's mistake is one line.

To be imported before `hf_clars`, which it finds beside itself where it is not installed.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("hf_clars") is None:
    sys.path.insert(1, str(ROOT))
try:
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
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install {error.name}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)


def command() -> str:
    """This command, with paths below the checkout as seen from there."""
    return " ".join(["python", *(argument.replace(f"{ROOT}/", "") for argument in sys.argv)])


def origin(device: str) -> dict[str, Any]:
    """Commit and hardware of what is measured on a device."""
    import torch

    return {
        "commit": commit(),
        "hardware": hardware({"use_cpu": not device.startswith("cuda")}, torch.get_num_threads()),
    }


def check_file(flag: str, name: str) -> None:
    """That a file of this name can be written in the end, in a folder that is there."""
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise UserError(f"{flag} {name} is in a folder that does not exist")
    if path.is_dir():
        raise UserError(f"{flag} {name} is a folder: name a file in it")
    writable_folder(f"{flag} {name}: folder", path.parent)


def write(path: Path, result: dict[str, Any]) -> None:
    """As JSON, whole or not at all: who looks for results must not find half of one."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(json.dumps(result, indent=1))
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise SystemExit(f"error: {path} cannot be written: {error.strerror or error}") from None
