"""How `ClarsTrainer` writes checkpoints. The one place that reaches into Trainer's way of writing them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import TrainingFailedError
from ..evaluating import share_buffers
from . import folders

logger = logging.getLogger(__name__)


class AtomicCheckpoints(Trainer):
    """A mix-in for `Trainer`: a folder `checkpoint-N` is a whole checkpoint, and earlier ones survive what happens.

    Trainer writes into `unfinished-checkpoint/`. When all processes are done, and everything is on disk with its
    checksum in `manifest.json`, the folder gets its name; only then older checkpoints are deleted. If anything cannot
    be written (no space left), that is said, the old checkpoints stay, and the training goes on. Under FSDP it ends:
    there, writing is a collective operation, which cannot go on without a process. It ends, too, where no disk would
    do: a model that cannot be saved is known at its first checkpoint.
    """

    resume_point: Any
    health: Any
    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args, state = self.args, self.state
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        share_buffers(self.model, args.device)  # for good: so that a training that goes on from there is this one
        self.resume_point.gather(self)
        trouble = self._write(model, trial, run_dir)
        if not any(self._of_all(trouble)):
            trouble = self._finish(run_dir, name)
        failures = [t for t in self._of_all(trouble) if t is not None]
        if failures:
            message = f"checkpoint of step {state.global_step} could not be written: {failures[0].message}"
            if not failures[0].of_disk:
                raise TrainingFailedError(f"{message}. Without checkpoints (save_strategy=no) it would go on")
            message += f" ({_free(run_dir)} are free there)"
            if self.is_fsdp_enabled:
                raise TrainingFailedError(f"{message}. Go on with resume_from_checkpoint=auto")
            if args.should_save:  # the part that was written would take the room of what comes next
                shutil.rmtree(run_dir / folders.STAGING, ignore_errors=True)
            if self.is_world_process_zero():
                logger.warning("%s; the training goes on, and earlier checkpoints stay", message)
            return
        if args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))
        if args.should_save:
            folders.keep(run_dir, args.save_total_limit, state.best_model_checkpoint)

    def _finalize_training(self, trial: Any, *rest: Any) -> Any:
        """With a limit of one, Trainer deletes all but the best checkpoint in the end, and would do so in place."""
        args = self.args
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            result = super()._finalize_training(trial, *rest)
        finally:
            args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if args.should_save and limit == 1 and best is not None:
            folders.keep_only(Path(self._get_output_dir(trial)), best)
        return result

    def _write(self, model: Any, trial: Any, run_dir: Path) -> Trouble | None:
        """Let Trainer write into the staging folder; returns what went wrong, if anything did."""
        args, state = self.args, self.state
        # What Trainer does with a finished checkpoint has to wait, and its barrier may not be reached after an error.
        postponed = args.push_to_hub, args.save_total_limit, state.best_global_step
        args.push_to_hub, args.save_total_limit, state.best_global_step = False, None, None
        alone = args.save_only_model
        args.save_only_model = alone and self.health.stopped_by is None  # the last one is to go on from
        try:
            # Ranks of one node may not delete what another has begun to write: the first one empties the folder.
            trouble = _attempt(lambda: folders.begin(run_dir)) if args.should_save else None
            self._of_all(trouble)
            self._staging = run_dir / folders.STAGING
            return trouble or _attempt(lambda: super(AtomicCheckpoints, self)._save_checkpoint(model, trial))
        finally:
            self._staging = None
            args.push_to_hub, args.save_total_limit, state.best_global_step = postponed
            args.save_only_model = alone

    def _finish(self, run_dir: Path, name: str) -> Trouble | None:
        state = self.state
        if state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            if best.name == name or best.exists():
                state.best_model_checkpoint = str(best)
        if not self.args.should_save:
            return None
        written = run_dir / folders.STAGING / name

        def finish() -> None:
            state.save_to_json(str(written / "trainer_state.json"))  # with the best checkpoint
            folders.finish(written, run_dir / name)

        return _attempt(finish)

    def _of_all(self, trouble: Trouble | None) -> list[Trouble | None]:
        return gather_object([trouble])


class Trouble(NamedTuple):
    """Why a checkpoint could not be written; `of_disk`: the next one may be."""

    message: str
    of_disk: bool


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"


# How torch's writer and safetensors say that a file could not be written, in RuntimeErrors and errors of their own.
_OF_DISK = ("inline_container", "PytorchStreamWriter", "iostream", "I/O error", "cannot be opened", "does not exist")


def _attempt(work: Callable[[], Any]) -> Trouble | None:
    """What kept a checkpoint from being written; None where nothing did."""
    try:
        work()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        return Trouble(message, isinstance(error, OSError) or any(sign in message for sign in _OF_DISK))
    return None
