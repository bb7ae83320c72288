"""Programs of their own, for what only a process of its own can show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def without(*prefixes: str, **more: str) -> dict[str, str]:
    """This process's environment without the variables that begin so, for a program of this checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


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
