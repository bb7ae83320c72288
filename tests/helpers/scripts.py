"""Programs: in a process of their own, and as modules."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def without(*prefixes: str, **more: str) -> dict[str, str]:
    """This process's environment without the variables that begin so, for a program of this checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def module_of(path: Path) -> ModuleType:
    """A script that is in no package, run as a module and not as a program."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_python(
    *words: object, cwd: Path = ROOT, environment: dict[str, str] | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """`python words…`, which must end with `status`."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=without() if environment is None else environment,
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-3000:]
    return done
