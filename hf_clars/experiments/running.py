"""Runs of a grid, made as processes of their own: what has a result is not run again, what was cut off goes on."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration import parse
from ..errors import DIVERGED, Preempted, UserError
from ..runtime.provenance import commit, hardware
from ..safety.secrets import without_secrets
from ..validation.checks import writable_folder
from .grid import Run
from .processes import RunProcess, cores, devices
from .results import Result, curve_of, read_result, write_result

# How every run is kept quiet; its own settings go over these.
_HOUSE = {"report_to": "none", "disable_tqdm": True, "plots": False, "dataloader_pin_memory": False}
OURS = ("output_dir", "resume_from_checkpoint", "config")  # what a run gets from its command


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
        draw_only: make no run.
        say: told what happens, a line at a time.
        watch: told how it stands, some times a second: runs that are done, all runs to be made, how many have failed,
            and which are under way.

    Attributes:
        failed: what ended without a result, a line for each run.
    """

    results: Path
    work: Path
    data_dir: Path | None = None
    jobs: int = 1
    threads: int | None = None
    launch: Sequence[str] = ()
    draw_only: bool = False
    say: Callable[[str], None] = print
    watch: Callable[[int, int, int, Sequence[Run]], None] = lambda *how_it_stands: None
    failed: list[str] = field(default_factory=list)

    def fill(self, runs: Sequence[Run]) -> dict[str, Result]:
        """Make the runs that have no result yet; returns all results there are, by key.

        Raises:
            UserError: settings that the recipe does not take, or a folder that cannot be written, before anything is
                run.
            Preempted: SIGTERM or Ctrl-C; runs under way were told, and left a checkpoint if their settings save any.
        """
        found = {run.key: read_result(self.results, run) for run in runs}
        missing = list({run.key: run for run in runs if found[run.key] is None}.values())
        if missing and not self.draw_only:
            self.check(missing)
            for name, folder in (("--results", self.results), ("--work", self.work)):
                writable_folder(name, folder)
            self.say(f"{len(found) - len(missing)} of {len(found)} runs have results in {self.results}")
            found |= self._run_all(missing)
        return {key: result for key, result in found.items() if result is not None}

    def check(self, runs: Sequence[Run], here: bool = True) -> None:
        """That the recipe takes every run's settings, `here` or where there may be a GPU; one it does not is named."""
        from ..image_classification.arguments import DEFAULTS, RecipeArguments, refuse_unused
        from ..trainer import ClarsTrainingArguments
        from ..trainer.records.tracking import wandb_for

        for run in runs:
            try:
                for key in OURS:
                    if run.settings.get(key) not in (None, "auto"):
                        raise UserError(f"{key} is the command's to choose, from --work: leave it out")
                # Without a GPU, bf16 is possible everywhere, and fp16 nowhere.
                elsewhere = [] if here else ["--use_cpu", "true", "--fp16", "false"]
                flags = [*self.flags(run), *elsewhere]
                recipe, args = parse(flags, RecipeArguments, ClarsTrainingArguments, defaults=DEFAULTS)
                refuse_unused(args)
                recipe.check()
                if here and "wandb" in (args.report_to or ()):
                    wandb_for()
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from None

    def flags(self, run: Run) -> list[str]:
        """The recipe's flags of a run, as it is made here."""
        settings = {**_HOUSE, **run.settings, "output_dir": str(self._folder(run)), "resume_from_checkpoint": "auto"}
        name = str(settings.get("dataset") or "").rstrip("/").rpartition("/")[2]
        if self.data_dir is not None and name and (self.data_dir / name).is_dir():
            settings["dataset"] = str(self.data_dir / name)
        return Run(run.place, settings).flags()

    def _run_all(self, runs: list[Run]) -> dict[str, Result | None]:
        done: dict[str, Result | None] = {}
        under_way: list[RunProcess] = []
        waiting = list(runs)
        stop = _StopRequest()
        try:
            while (waiting and not stop.asked) or under_way:
                while waiting and len(under_way) < self.jobs and not stop.asked:
                    run = waiting.pop(0)
                    if (made := read_result(self.results, run)) is not None:  # by another command, meanwhile
                        done[run.key] = made
                        continue
                    under_way.append(self._start(run, slot=_free_slot(under_way)))
                for process in [p for p in under_way if not p.is_alive()]:
                    under_way.remove(process)
                    done[process.run.key] = self._collect(process)
                    self._tell(process, done[process.run.key], len(done), len(runs))
                self.watch(len(done), len(runs), len(self.failed), [process.run for process in under_way])
                if stop.asked:
                    for process in under_way:
                        process.terminate()
                time.sleep(0.2)
        finally:
            stop.restore()
            for process in under_way:
                process.kill()
        if stop.asked:
            left = len(runs) - sum(result is not None for result in done.values())
            raise Preempted(f"stopped: {left} runs have no result yet; start again to go on")
        return done

    def _start(self, run: Run, slot: int) -> RunProcess:
        environment = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if len(devices()) > 1 and not self.launch:
            environment["CUDA_VISIBLE_DEVICES"] = devices()[slot % len(devices())]
        return RunProcess(run, self._folder(run), self.flags(run), environment, self.launch, slot, commit())

    def _folder(self, run: Run) -> Path:
        return self.work / run.file_name

    @property
    def _threads(self) -> int:
        return self.threads or max(1, cores() // self.jobs)

    def _collect(self, process: RunProcess) -> Result | None:
        """The run's result, written; None if it has none, which `failed` then says, unless it was asked to end."""
        run, folder, status = process.run, process.folder, process.status
        error = process.last_error() if status else ""
        diverged = status == 1 and DIVERGED in error
        if status and not diverged:
            if status != Preempted.EXIT_STATUS:
                self.failed.append(f"{run.title}: {error or f'exit status {status}'} ({process.log})")
            return None
        try:
            history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
            metrics = {} if diverged else json.loads((folder / "all_results.json").read_text())
            result = Result(
                place=dict(run.place),
                settings=without_secrets(run.settings),
                state="diverged" if diverged else "finished",
                seconds=round(process.seconds, 1),
                commit=process.commit,
                hardware=hardware(run.settings, self._threads),
                curve=curve_of(history),
                final={} if diverged else _finite(metrics, ("train_loss", "eval_loss", "eval_accuracy")),
                variances=_lines(folder / "gradient_variance.jsonl"),
                layers=_lines(folder / "layer_statistics.jsonl"),
            )
            write_result(self.results, run, result)
        except (OSError, ValueError, KeyError) as error:
            self.failed.append(f"{run.title}: its result cannot be kept ({error}); what it left is in {folder}")
            return None
        shutil.rmtree(folder, ignore_errors=True)  # what is left of it is in nobody's way
        return result

    def _tell(self, process: RunProcess, result: Result | None, number: int, total: int) -> None:
        if result is None:
            outcome = "no result"
        elif result.state == "diverged":
            outcome = "diverged"
        else:
            outcome = f"{result.final.get('eval_accuracy', math.nan):.1%}"
        self.say(f"[{number}/{total}] {process.run.title}: {outcome} after {process.seconds:.0f} s")


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


def _free_slot(under_way: list[RunProcess]) -> int:
    taken = {process.slot for process in under_way}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _finite(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """JSON knows neither NaN nor infinity."""
    return {name: metrics[name] for name in names if name in metrics and math.isfinite(metrics[name])}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
