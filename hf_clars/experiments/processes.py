"""One run as a process that outlives neither its work nor, without need, whoever asked for it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


def start(flags: Sequence[str], environment: Mapping[str, str], log: Path, launch: Sequence[str]) -> BaseProcess:
    """`hf-clars train`, from now on, with variables over those there are; `launch` are words to launch it with."""
    # Everything is imported once, and every run is a fork of the process that did.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_clars.experiments.forkserver", "hf_clars.image_classification.recipe"])
    process = context.Process(target=_train, args=(list(flags), dict(environment), str(log), list(launch)))
    process.start()
    return process


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
