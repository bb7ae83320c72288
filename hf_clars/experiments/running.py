"""Runs of a grid, made as processes of their own: what has a result is not run again, what was cut off goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..configuration import parse
from ..errors import Preempted, UserError
from .grid import Run
from .results import Result, commit, curve_of, hardware, read_result, write_result

# Where each run is housed: its own flags go over these, and what the user sets over both.
_HOUSE = {"report_to": "none", "disable_tqdm": True, "plots": False, "dataloader_pin_memory": False}
_LOG = "log.txt"


@dataclass
class Runner:
    """Fills a folder of results.

    Args:
        results: where results are and go.
        work: where runs have their output folders while they last, with checkpoints if their settings ask for some.
        data_dir: has the data sets in folders of their own names; those it lacks come from the Hub.
        jobs: runs at a time. With several GPUs they take turns at them.
        threads: CPU threads of each run.
        launch: words to launch each run with, for several processes: `accelerate launch …`.
        say: told what happens, a line at a time.
    """

    results: Path
    work: Path
    data_dir: Path | None = None
    jobs: int = 1
    threads: int | None = None
    launch: Sequence[str] = ()
    say: Callable[[str], None] = print
    failed: list[str] = field(default_factory=list)

    def fill(self, runs: Sequence[Run]) -> dict[str, Result]:
        """Make the runs that have no result yet; returns all results there are, by key.

        Raises:
            UserError: settings that the recipe does not take, before anything is run.
            Preempted: SIGTERM or Ctrl-C; runs under way were told, and went as their settings have it.
        """
        found = {run.key: read_result(self.results, run) for run in runs}
        missing = list({run.key: run for run in runs if found[run.key] is None}.values())
        if missing:
            self.check(missing)
            self.say(f"{len(runs) - len(missing)} of {len(runs)} runs have results in {self.results}")
            found |= self._run_all(missing)
        return {key: result for key, result in found.items() if result is not None}

    def check(self, runs: Sequence[Run]) -> None:
        """That the recipe takes every run's settings; one that it does not is named."""
        from ..recipe_arguments import RecipeArguments
        from ..training import ClarsTrainingArguments

        for run in runs:
            try:
                parse(self._flags(run), RecipeArguments, ClarsTrainingArguments)
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from None

    def _run_all(self, runs: list[Run]) -> dict[str, Result | None]:
        done: dict[str, Result | None] = {}
        under_way: list[_Process] = []
        waiting = list(runs)
        stop = _StopRequest()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.jobs and not stop.asked:
                    under_way.append(self._start(waiting.pop(0), slot=_free_slot(under_way)))
                if stop.asked and not under_way:
                    raise Preempted(f"stopped: {len(runs) - len(done)} runs have no result yet; start again to go on")
                for process in [p for p in under_way if not p.process.is_alive()]:
                    under_way.remove(process)
                    done[process.run.key] = self._collect(process)
                    self._tell(process, done[process.run.key], len(done), len(runs))
                if stop.asked:
                    for process in under_way:
                        process.terminate()
                time.sleep(0.2)
        finally:
            stop.restore()
            for process in under_way:
                process.terminate(signal.SIGKILL)
        return done

    def _start(self, run: Run, slot: int) -> _Process:
        folder = self._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if torch.cuda.device_count() > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
        work = (self._flags(run), environment, str(folder / _LOG), list(self.launch))
        process = _context().Process(target=_work, args=work)
        process.start()
        return _Process(run, slot, process, time.monotonic())

    def _flags(self, run: Run) -> list[str]:
        settings = {**_HOUSE, **run.settings, "output_dir": str(self._folder(run)), "resume_from_checkpoint": "auto"}
        local = None if self.data_dir is None else self.data_dir / str(settings.get("dataset", "")).rpartition("/")[2]
        if local is not None and local.is_dir():
            settings["dataset"] = str(local)
        return Run(run.place, settings).flags()

    def _folder(self, run: Run) -> Path:
        return self.work / run.file_name

    @property
    def _threads(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    def _collect(self, process: _Process) -> Result | None:
        run, folder = process.run, self._folder(process.run)
        status, seconds = process.process.exitcode, time.monotonic() - process.began
        error = _last_error(folder / _LOG)
        diverged = status == 1 and "diverged" in error
        if status and not diverged:
            if status != Preempted.EXIT_STATUS:
                self.failed.append(f"{run.title}: {error or f'exit status {status}'} ({folder / _LOG})")
            return None
        history = _read(folder / "trainer_state.json", {}).get("log_history", [])
        metrics = _read(folder / "all_results.json", {})
        result = Result(
            place=dict(run.place),
            settings=dict(run.settings),
            state="diverged" if diverged else "finished",
            seconds=round(seconds, 1),
            commit=commit(),
            hardware=hardware(run.settings, self._threads),
            curve=curve_of(history),
            final={k: v for k, v in metrics.items() if k in ("train_loss", "eval_loss", "eval_accuracy") and v == v},
            variances=_lines(folder / "gradient_variance.jsonl"),
            layers=_lines(folder / "layer_statistics.jsonl"),
        )
        write_result(self.results, run, result)
        shutil.rmtree(folder)
        return result

    def _tell(self, process: _Process, result: Result | None, number: int, total: int) -> None:
        if result is None:
            outcome = "no result"
        elif result.state == "diverged":
            outcome = "diverged"
        else:
            outcome = f"{result.final.get('eval_accuracy', float('nan')):.1%}"
        seconds = time.monotonic() - process.began
        self.say(f"[{number}/{total}] {process.run.title}: {outcome} after {seconds:.0f} s")


@dataclass
class _Process:
    run: Run
    slot: int
    process: Any
    began: float
    told: bool = False

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.is_alive() and (number == signal.SIGKILL or not self.told):
            self.told = True
            (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)


class _StopRequest:
    """SIGTERM and Ctrl-C while runs are made: the runs are asked to end first."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _context() -> Any:
    """Everything is imported once, and every run is a fork of the process that did."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_clars.recipe", "hf_clars.cli"])
    return context


def _work(flags: list[str], environment: dict[str, str], log: str, launch: list[str]) -> None:
    os.setpgid(0, 0)  # a Ctrl-C at the terminal is the parent's
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if launch:
        os.execvp(launch[0], [*launch, "--module", "hf_clars", "train", *flags])
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    from ..cli import train

    sys.exit(train(flags))


def _free_slot(under_way: list[_Process]) -> int:
    taken = {process.slot for process in under_way}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _last_error(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else (lines[-1].strip() if lines else "")


def _read(file: Path, default: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else default


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
