"""Runs of a grid, made as processes of their own: what has a result is not run again, what was cut off goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..configuration import parse
from ..errors import DIVERGED, Preempted, UserError
from ..runtime.provenance import hardware
from ..safety.secrets import without_secrets
from ..safety.texts import printable
from ..trainer.signals import SIGNALS, listening
from ..validation.checks import writable_folder
from .grid import Run
from .processes import Attempt, devices
from .results import Result, left_in, read_result, write_result
from .sweeps import located

# How every run is kept quiet; its own settings go over these.
_HOUSE = {"report_to": "none", "disable_tqdm": True, "plots": False, "dataloader_pin_memory": False}
OURS = ("output_dir", "resume_from_checkpoint", "config")  # what a run gets from its command
_STATUS = "{n_fmt} of {total_fmt} runs done{postfix}; {elapsed} so far, about {remaining} left"


@dataclass
class Runner:
    """Fills a folder of results. On a terminal, its last line says how that stands.

    Args:
        results: where results are and go.
        work: where runs have their output folders while they last, with checkpoints if their settings ask for some.
        data_dir: has the data sets in folders of their own names; those it lacks come from the Hub.
        sweep_file: around which other data sets are looked for, before the working folder and the Hub.
        jobs: runs at a time. With several GPUs they take turns at them.
        threads: CPU threads of each run.
        launch: words to launch each run with, for several processes: `accelerate launch …`.
        draw_only: make no run.
        failed: gets a line for each run that ends without a result.
    """

    results: Path
    work: Path
    data_dir: Path | None = None
    sweep_file: Path | None = None
    jobs: int = 1
    threads: int | None = None
    launch: Sequence[str] = ()
    draw_only: bool = False
    failed: list[str] = field(default_factory=list)

    def fill(self, runs: Sequence[Run]) -> dict[str, Result]:
        """Make the runs that have no result yet; returns all results there are, by key.

        Raises:
            UserError: settings that the recipe does not take, or a folder that cannot be written, before anything runs.
            Preempted: a signal to stop; runs under way were told, and left a checkpoint if their settings save any.
        """
        found = {run.key: read_result(self.results, run) for run in runs}
        missing = list({run.key: run for run in runs if found[run.key] is None}.values())
        if missing and not self.draw_only:
            self.check(missing)
            if self.launch and shutil.which(self.launch[0]) is None:
                raise UserError(f"--launch {self.launch[0]}: there is no such program")
            for name, folder in (("--results", self.results), ("--work", self.work)):
                writable_folder(name, folder)
            _say(f"{len(found) - len(missing)} of {len(found)} runs have results in {self.results}")
            found |= self._run_all(missing)
        return {key: result for key, result in found.items() if result is not None}

    def check(self, runs: Sequence[Run], here: bool = True) -> None:
        """That the recipe takes every run's settings, `here`, where its data are, or where there may be a GPU.

        Raises:
            UserError: the first run whose settings it does not take, or whose folder of data is not there, by name.
        """
        from ..data.opening import local_folder
        from ..image_classification.arguments import DEFAULTS, RecipeArguments, refuse_unused
        from ..trainer import ClarsTrainingArguments
        from ..trainer.records.tracking import wandb_for

        # Without a GPU, bf16 is possible everywhere, and fp16 nowhere.
        elsewhere = {} if here else {"use_cpu": True, "fp16": False}
        for run in runs:
            try:
                for key in OURS:
                    if run.settings.get(key) not in (None, "auto"):
                        raise UserError(f"{key} is the command's to choose, from --work: leave it out")
                flags = self.flags(Run(run.place, {**run.settings, **elsewhere}))
                recipe, args = parse(flags, RecipeArguments, ClarsTrainingArguments, defaults=DEFAULTS)
                refuse_unused(args)
                recipe.check()
                if here:
                    local_folder(recipe.dataset)
                    if "wandb" in (args.report_to or ()):
                        wandb_for()
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from None

    def flags(self, run: Run) -> list[str]:
        """The recipe's flags of a run, as it is made here."""
        folder = str(self.work / run.file_name)
        settings = {**_HOUSE, **run.settings, "output_dir": folder, "resume_from_checkpoint": "auto"}
        name = str(settings.get("dataset") or "").rstrip("/").rpartition("/")[2]
        if self.data_dir is not None and name and (self.data_dir / name).is_dir():
            settings["dataset"] = str(self.data_dir / name)
        elif self.sweep_file is not None and name:
            settings["dataset"] = located(self.sweep_file, str(settings["dataset"]))
        return Run(run.place, settings).flags()

    def _run_all(self, runs: list[Run]) -> dict[str, Result | None]:
        done: dict[str, Result | None] = {}
        under_way: list[Attempt] = []
        waiting = list(runs)
        bar = tqdm(total=len(runs), smoothing=0, disable=None, dynamic_ncols=True, leave=False, bar_format=_STATUS)
        with bar, listening((*SIGNALS, signal.SIGINT)) as stop:
            try:
                while under_way or (waiting and not stop.signal):
                    while waiting and len(under_way) < self.jobs and not stop.signal:
                        run = waiting.pop(0)
                        if (made := read_result(self.results, run)) is not None:  # by another command, meanwhile
                            done[run.key] = made
                        else:
                            under_way.append(self._started(run, {attempt.slot for attempt in under_way}))
                    for attempt in [a for a in under_way if not a.process.is_alive()]:
                        seconds = time.monotonic() - attempt.began
                        result = done[attempt.run.key] = self._collect(attempt, seconds)
                        under_way.remove(attempt)
                        how = str(result.state if result else "no result")
                        if result and "eval_accuracy" in result.final:
                            how = f"{result.final['eval_accuracy']:.1%}"
                        _say(f"[{len(done)}/{len(runs)}] {attempt.run.title}: {how} after {seconds:.0f} s")
                    names = textwrap.shorten(", ".join(a.run.title for a in under_way), 50, placeholder=" …")
                    bar.n = len(done)
                    bar.set_postfix_str(f"{len(self.failed)} failed, {len(under_way)} running ({printable(names)})")
                    for attempt in under_way if stop.signal else ():
                        attempt.stop()
                    time.sleep(0.2)
            finally:
                for attempt in under_way:
                    attempt.kill()
        if stop.signal:
            left = len(runs) - sum(result is not None for result in done.values())
            raise Preempted(f"stopped: {left} runs have no result yet; start again to go on")
        return done

    def _started(self, run: Run, taken: set[int]) -> Attempt:
        slot = next(slot for slot in range(self.jobs) if slot not in taken)
        environment = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if len(devices()) > 1 and not self.launch:
            environment["CUDA_VISIBLE_DEVICES"] = devices()[slot % len(devices())]
        return Attempt(run, self.work / run.file_name, slot, self.flags(run), environment, self.launch)

    @property
    def _threads(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or max(1, cores // self.jobs)

    def _collect(self, attempt: Attempt, seconds: float) -> Result | None:
        """The run's result, written; None if it has none, which `failed` then says, unless it was asked to end."""
        run, folder, status = attempt.run, attempt.log.parent, attempt.process.exitcode
        error = attempt.last_error() if status else ""
        diverged = status == 1 and DIVERGED in error
        if status and not diverged:
            if (made := read_result(self.results, run)) is not None:  # by another command, at the same time
                return made
            if status != Preempted.EXIT_STATUS and not attempt.told:  # launchers make 1 of it
                self.failed.append(f"{run.title}: {error or f'exit status {status}'} ({attempt.log})")
            return None
        try:
            result = Result(
                place=dict(run.place),
                settings=without_secrets(run.settings),
                state="diverged" if diverged else "finished",
                seconds=round(seconds, 1),
                commit=attempt.commit,
                hardware=hardware(run.settings, self._threads),
                **left_in(folder, diverged),
            )
            write_result(self.results, run, result)
        except (OSError, ValueError, KeyError) as problem:
            self.failed.append(f"{run.title}: its result cannot be kept ({problem}); what it left is in {folder}")
            return None
        shutil.rmtree(folder, ignore_errors=True)  # what is left of it is in nobody's way
        return result


def _say(line: str) -> None:
    """Above the line that says how it stands."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(printable(line), flush=True)
