"""One run as a process that outlives neither its work nor, without need, whoever asked for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from ..errors import Preempted
from .grid import Run

_AT_WORK = 3  # the exit status where another process has the lock; none of the recipe's


class RunProcess:
    """`hf-clars train` with a run's flags, in its folder, from now on.

    A lock beside the folder keeps two processes from the same run, also when whoever started the first one was killed.

    Args:
        run: the run.
        folder: its output folder; what it prints goes to `log` in there.
        flags: of the recipe.
        environment: variables over those there are.
        launch: words to launch it with.
        slot: which of the runs at a time it is.
        commit: of the code that it runs.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        flags: Sequence[str],
        environment: dict[str, str],
        launch: Sequence[str],
        slot: int,
        commit: str,
    ) -> None:
        self.run, self.folder, self.slot, self.commit = run, folder, slot, commit
        self.log = folder / "log.txt"
        self._began, self._told = time.monotonic(), False
        folder.mkdir(parents=True, exist_ok=True)
        work = (list(flags), environment, str(folder), str(self.log), list(launch))
        self._process = _context().Process(target=_work, args=work)
        self._process.start()

    def is_alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def status(self) -> int:
        """The exit status; negative for a signal."""
        return int(self._process.exitcode or 0)

    @property
    def seconds(self) -> float:
        """Since it was started; of a run that was cut off before, of its last part."""
        return time.monotonic() - self._began

    def terminate(self) -> None:
        """Ask it to end, once."""
        if self.is_alive() and not self._told:
            self._told = True
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it has started."""
        if self.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_error(self) -> str:
        """Why it failed, in its own words."""
        if self.status == _AT_WORK:
            return f"another process is at work on this run in {self.folder}"
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else (lines[-1].strip() if lines else "")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]


def _context() -> Any:
    """Everything is imported once, and every run is a fork of the process that did."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hf_clars.experiments.forkserver", "hf_clars.image_classification.recipe", "hf_clars.cli"]
    )
    return context


def _work(flags: list[str], environment: dict[str, str], folder: str, log: str, launch: list[str]) -> None:
    os.setpgid(0, 0)  # a Ctrl-C at the terminal is the parent's
    os.environ.update(environment)
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        sys.exit(_AT_WORK)  # the log is the other's
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = _launched([*launch, "--module", "hf_clars", "train", *flags]) if launch else _trained(flags, environment)
    Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be somebody else's
    lock.release()
    sys.exit(status)


def _trained(flags: list[str], environment: dict[str, str]) -> int:
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    from ..cli import train

    return train(flags)


def _launched(command: list[str]) -> int:
    """The exit status; launchers make 1 of that of a run that was asked to end."""
    process = subprocess.Popen(command)
    asked = []

    def forward(number: int, frame: Any) -> None:
        asked.append(number)
        process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    status = process.wait()
    return Preempted.EXIT_STATUS if asked and status else status
