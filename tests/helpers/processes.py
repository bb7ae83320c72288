"""Programs in real processes: trainings that can be watched and killed, scripts, and ranks of a launcher.

A fork server imports everything once, so that a process costs a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PHASES = ("starting", "training", "evaluating", "writing a checkpoint")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["hf_clars.image_classification.recipe", "hf_clars.cli", "hf_clars.comparison.command", "wandb",
     "tests.helpers.processes", "tests.helpers.streams", "tests.helpers.launch"]
)  # fmt: skip


class Training:
    """One run of the program, by `world_size` processes with the variables that Slurm's and torch's launchers set.

    Args:
        strike: (n, seconds): the first process kills itself, and all that it has started, so long after the n-th of its
            micro-batches, evaluations and checkpoints has begun; after its start, if n is 0.
    """

    def __init__(
        self, argv: list[str], log: Path, world_size: int = 1, strike: tuple[float, float] = (-1, 0), **environment: str
    ) -> None:
        self.phase: Any = FORKS.Value("i", 0)
        self.strike: Any = FORKS.Array("d", strike)
        self.log = log
        port = free_port()
        self.processes = []
        for rank in range(world_size):
            variables = {"OMP_NUM_THREADS": "1", **environment}
            if world_size > 1:
                variables |= _launched(rank, world_size, port)
            process = FORKS.Process(target=_run, args=(argv, variables, str(log), self.phase, self.strike))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit statuses; negative for signals, as `multiprocessing` has them."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [p for p in self.processes if p.is_alive()]
        if hanging:
            self.kill()
            raise AssertionError(f"{len(hanging)} process(es) still ran after {seconds} s:\n{self.output()}")
        return [p.exitcode for p in self.processes]

    def wait_for(self, condition, seconds: float = 60) -> bool:
        """Until `condition()` holds; False if the program ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if not all(p.is_alive() for p in self.processes):
                return False
            assert time.monotonic() < end, self.output()
            time.sleep(0.002)
        return True

    def kill(self, number: int = signal.SIGKILL, ranks: list[int] | None = None) -> None:
        """Send a signal to the programs and, for SIGKILL, to all that they have started."""
        for rank, process in enumerate(self.processes):
            if process.is_alive() and (ranks is None or rank in ranks):
                with suppress(ProcessLookupError):  # it has just ended by itself
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def errors(self) -> list[str]:
        return [line for line in self.output().splitlines() if line.startswith("error: ")]


def _run(argv: list[str], environment: dict[str, str], log: str, phase: Any, strike: Any) -> None:
    os.setpgid(0, 0)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    import torch

    from hf_clars.cli import train
    from hf_clars.trainer import ClarsTrainer

    multiprocessing.set_start_method("fork", force=True)  # as in a program that nobody forked
    torch.set_num_threads(1)
    if environment.get("RANK", "0") == "0":
        if strike[0] == 0:
            _die_in(strike[1])
        _tell(ClarsTrainer, "training_step", phase, 1, strike)
        _tell(ClarsTrainer, "evaluate", phase, 2, strike)
        _tell(ClarsTrainer, "_save_checkpoint", phase, 3, strike)
    status = train(argv)
    raise SystemExit(status)


def _die_in(seconds: float) -> None:
    threading.Timer(seconds, lambda: os.killpg(os.getpid(), signal.SIGKILL)).start()


def _tell(kind: type, name: str, phase: Any, number: int, strike: Any) -> None:
    method = getattr(kind, name)

    def told(self, *args, **kwargs):
        phase.value = number
        strike[0] -= 1
        if strike[0] == 0:
            _die_in(strike[1])
        return method(self, *args, **kwargs)

    setattr(kind, name, told)


def by_two(
    work: Callable[..., None], *args: Any, world_size: int = 2, status: int = 0, seconds: float = 120, **kwargs: Any
) -> None:
    """`work(rank, …)` in two processes that a launcher might have started, each of which ends with `status`."""
    port = free_port()
    processes = [
        FORKS.Process(target=_ranked, args=(work, rank, world_size, port, args, kwargs)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process waits for the other"
    assert [process.exitcode for process in processes] == [status] * world_size


def _ranked(work: Callable[..., None], rank: int, world_size: int, port: int, args: Any, kwargs: Any) -> None:
    os.environ.update(_launched(rank, world_size, port))

    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    torch.set_num_threads(1)
    PartialState(cpu=True)  # joins the others
    work(rank, *args, **kwargs)
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def _launched(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that Slurm's and torch's launchers set."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(
    script: str, folder: Path, *words: str, environment: dict[str, str] | None = None, status: int = 0, seconds=240
) -> str:
    """What a program prints that runs in `folder`, with nothing of W&B in its environment but what is said here.

    Libraries are imported already: variables that they read when they are imported have no effect.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "NETRC"))}
    clean |= {"HOME": str(folder), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    out, err = folder / "script.out", folder / "script.err"
    process = FORKS.Process(target=_script, args=(script, words, folder, clean | (environment or {}), out, err))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    said = out.read_text(), err.read_text()
    out.unlink()
    err.unlink()
    assert process.exitcode == status, said[1][-3000:]
    return said[0]


def _script(script: str, words: tuple[str, ...], folder: Path, environment: dict[str, str], *outputs: Path) -> None:
    for number, file in enumerate(outputs, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *words]
    import wandb

    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    except BaseException:
        wandb.run and wandb.run.finish(exit_code=1)
        raise
    if wandb.run is not None:  # as it ends with a program; what is registered with `atexit` does not run in a fork
        wandb.finish()
