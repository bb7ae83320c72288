"""One run as a process that outlives neither its work nor, without need, whoever asked for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..runtime.provenance import commit
from .grid import Run


class Attempt:
    """A run under way: `hf-clars train`, from now on. Its training locks its folder: one ends at once where another is
    at work in there.

    Its log is in its `folder`. `slot` is its number among those that run at a time.
    """

    def __init__(
        self, run: Run, folder: Path, slot: int, flags: list[str], environment: Mapping[str, str], launch: Sequence[str]
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.run, self.slot, self.log = run, slot, folder / "log.txt"
        self.commit, self.began, self.told = commit(), time.monotonic(), False
        self._logged = self.log.stat().st_size if self.log.exists() else 0  # bytes that are of earlier attempts
        # Everything is imported once, and every run is a fork of the process that did.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hf_clars.experiments.forkserver", "hf_clars.image_classification.recipe"])
        self.process = context.Process(target=_train, args=(flags, dict(environment), str(self.log), list(launch)))
        self.process.start()

    def stop(self) -> None:
        """Ask it to end, once."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def kill(self) -> None:
        """And what it has started."""
        if self.process.pid and self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_error(self) -> str:
        """In its own words."""
        lines = self.log.read_bytes()[self._logged :].decode(errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1].strip()


def devices() -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(torch.cuda.device_count())) if visible is None else visible.split(",")
    return [name for name in names if name]


def _train(flags: list[str], environment: dict[str, str], log: str, launch: list[str]) -> None:
    os.setpgid(0, 0)  # a Ctrl-C at the terminal is the parent's
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if launch:
        os.execvp(launch[0], [*launch, "--module", "hf_clars", "train", *flags])
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    from ..image_classification.command import train

    sys.exit(train(flags))
