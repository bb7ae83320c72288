"""Commands one after the other within a time budget: none can stop the others, and what has a result is kept.

Each is a process group of its own, which is killed when its time is up. Its output is `NAME.log` in the folder of
results, and how it ended stands in `NAME.status.json` there. Standard library only.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

OK, FAILED, TIMEOUT, NO_TIME = "ok", "failed", "timeout", "no time left"
_FEWEST = 0.25  # share of its limit below which a run is not worth beginning
_GRACE = 3.0  # seconds between asking to end and killing
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


@dataclass(frozen=True)
class Run:
    """A command to be run.

    Args:
        name: of its files.
        command: arguments, the program first.
        seconds: after which it is killed.
        environment: variables to set, beside those there are.
    """

    name: str
    command: Sequence[str]
    seconds: float
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended; `reason` is the last line of its output where it did not end well."""

    name: str
    status: str
    seconds: float
    command: str
    commit: str
    reason: str = ""

    @property
    def ran(self) -> bool:
        return self.status == OK


def run_all(runs: Sequence[Run], out: Path, *, seconds: float, commit: str, cwd: Path) -> list[Ended]:
    """Run what has no good result of this commit and command in `out` yet, in order, for so many seconds in all.

    What failed, was killed, or found no time is tried again by the next call. Prints a line for each.
    """
    end = time.monotonic() + seconds
    ended = []
    for number, run in enumerate(runs, 1):
        label = f"[{number}/{len(runs)}] {run.name:<24}"
        before = _read(out, run, commit)
        if before is not None and before.ran:
            ended.append(before)
            print(f"{label} there already", flush=True)
            continue
        left = end - time.monotonic() - _GRACE
        if left < _FEWEST * run.seconds:
            ended.append(before or Ended(run.name, NO_TIME, 0.0, _shown(run), commit))
            print(f"{label} {NO_TIME}: {max(0.0, left):.0f} s, it may take {run.seconds:.0f} s", flush=True)
            continue
        print(f"{label} … at most {min(left, run.seconds):.0f} s", flush=True)
        result = _run(run, out, min(left, run.seconds), commit, cwd)
        ended.append(result)
        (out / f"{run.name}.status.json").write_text(json.dumps(asdict(result), indent=1))
        print(f"{label} {result.status} after {result.seconds:.0f} s  {result.reason}".rstrip(), flush=True)
    return ended


def _shown(run: Run) -> str:
    return " ".join("python" if part == sys.executable else part for part in run.command)


def _read(out: Path, run: Run, commit: str) -> Ended | None:
    """How it ended before; nothing where that was another commit, or the same name at other sizes."""
    try:
        before = Ended(**json.loads((out / f"{run.name}.status.json").read_text()))
    except (OSError, ValueError, TypeError):  # none, or one that was being written
        return None
    return before if (before.commit, before.command) == (commit, _shown(run)) else None


def _run(run: Run, out: Path, seconds: float, commit: str, cwd: Path) -> Ended:
    log = out / f"{run.name}.log"
    environment = {**os.environ, **(run.environment or {})}
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            run.command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, env=environment,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            status = OK if process.wait(seconds) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = TIMEOUT
        finally:  # whatever it may have left behind, and if we are asked to end, itself
            _end(process)
    reason = "" if status == OK else _last_line(log)
    return Ended(run.name, status, time.monotonic() - start, _shown(run), commit, reason)


def _end_with_parent() -> None:
    """In a new process, on Linux: SIGKILL of whoever started it ends it, too. It would disturb later measurements."""
    if _PRCTL is not None:
        _PRCTL(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _end(process: subprocess.Popen) -> None:
    """Ask the whole group to end, and kill what does not."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:160]


def end_with_us() -> None:
    """Let SIGTERM and Ctrl-C end the run under way, too, which is in a process group of its own."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
