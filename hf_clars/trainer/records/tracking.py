"""W&B that never stops a run: offline without a login or without a network, and going on where a run was cut off."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import requests
import requests.utils

from ...errors import UserError
from ...safety.secrets import out_of_command_line
from .description import Description

_PATIENCE = 10  # seconds for an answer of any kind
_BEST = {"max": ("accuracy", "f1", "precision", "recall", "auc"), "min": ("loss", "error", "perplexity")}

logger = logging.getLogger(__name__)


def keep_wandb_offline_without_login(report_to: str | Sequence[str] | None) -> None:
    """Set `WANDB_MODE=offline` if W&B is asked for, nobody is logged in, and no mode was chosen.

    Raises:
        UserError: W&B is asked for and not installed, or a variable of its own that it does not take.
    """
    if not _is_asked_for(report_to):
        return
    try:
        wandb_for().setup()
    except ValueError as error:  # pydantic's, of all variables, WANDB_MODE among them
        wrong = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"W&B's environment: {': '.join(wrong[1:3])}") from error
    if not os.environ.get("WANDB_MODE") and not somebody_is_logged_in():
        _stay_offline()


def somebody_is_logged_in() -> bool:
    """Whether W&B has a key for its server. Asks nobody for one, and the server nothing."""
    settings = wandb_for().setup().settings
    return bool(settings.api_key or settings.identity_token_file or requests.utils.get_netrc_auth(settings.base_url))


def begin_wandb(args: Any, run_id: str | None, about: Description) -> bool:
    """Begin the run, or go on with run `run_id`. Offline if W&B cannot be reached. For the main process.

    `WANDB_NAME`, `WANDB_RUN_GROUP` and `args.run_name` win over what `about` has; `WANDB_TAGS` are added to.

    Returns:
        Whether a run was begun: not where W&B is not asked for, and not where somebody else has begun one.
    """
    if not _is_asked_for(args.report_to) or os.environ.get("WANDB_MODE") == "disabled":
        return False
    wandb, environment = wandb_for(), os.environ
    options: dict[str, Any] = {
        "name": args.run_name or (None if environment.get("WANDB_NAME") else about.name),
        "group": None if environment.get("WANDB_RUN_GROUP") else about.group,
        "tags": _with_tags((environment.get("WANDB_TAGS") or "").split(","), about.tags),
    }
    if not environment.get("WANDB_SWEEP_ID"):  # whose agent has decided on both
        options["project"] = environment.get("WANDB_PROJECT", "huggingface")
        if run_id is not None:
            options |= {"id": run_id, "resume": "allow"}
    if environment.get("WANDB_MODE", "online") == "online":
        trouble = unreachable(wandb.setup().settings.base_url)
        if trouble is None:
            try:
                _init(options)
                return True
            except wandb.errors.CommError as error:
                trouble = " ".join(str(error).split())
        logger.warning("W&B cannot be reached (%s): the run is kept offline, for `wandb sync` afterwards", trouble)
        _stay_offline()
    _init(options)
    return True


def _init(options: dict[str, Any]) -> None:
    with out_of_command_line():  # which W&B keeps
        wandb_for().init(**options)


def describe_wandb_run(args: Any, about: Description, ours: bool) -> None:
    """Complete the config of the run at work, and say how its metrics are drawn and summed up.

    Transformers has logged all its arguments before. Whatever else somebody put into the config stays, and so does what
    a sweep decided. Epoch, images and seconds can be x axes, and get no panels. A run that is not `ours` gets our tags
    beside its own, and keeps its own view of metrics.
    """
    run = live_run()
    if run is None:
        return
    raw = args.to_dict()
    logged = dict(run.config)
    changed = {
        key: value
        for key, value in about.config.items()
        if logged.get(key) != value and (logged.get(key) is None or logged[key] == raw.get(key))
    }
    run.config.update(changed, allow_val_change=True)
    if not ours:
        run.tags = _with_tags(run.tags or (), about.tags)
        return
    for axis in ("train/epoch", "train/images_seen", "train/seconds"):
        run.define_metric(axis, hidden=True)
    run.define_metric("eval/*", step_metric="train/global_step")


def define_best(metrics: Iterable[str]) -> None:
    """Let W&B's summary hold the best value of what a Trainer is about to log, `eval_accuracy`, beside the last one.

    That is the largest of what is called an accuracy (or F1, …), the smallest of what is called a loss (or error).
    """
    run = live_run()
    for metric in metrics if run is not None else ():
        name = metric.removeprefix("eval_")
        best = next((best for best, words in _BEST.items() if any(word in name for word in words)), None)
        if best is not None and metric.startswith("eval_"):
            run.define_metric(f"eval/{name}", step_metric="train/global_step", summary=f"last,{best}")


def end_wandb(status: int, again: bool = False) -> None:
    """End the run at work: as a success if `status` is 0; as one that was cut short if it is to go on `again`."""
    run = live_run()
    if run is not None:
        if again:
            run.mark_preempting()
        run.finish(exit_code=status)


def live_run() -> Any:
    """The run at work, if there is one."""
    run = _run()
    return run if run is not None and not run.disabled else None


def wandb_run_id() -> str | None:
    """Of the run at work, if there is one."""
    run = live_run()
    return None if run is None else run.id


def _with_tags(chosen: Iterable[str], further: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (*map(str.strip, chosen), *further))))


def _is_asked_for(report_to: str | Sequence[str] | None) -> bool:
    return "wandb" in (report_to or ()) and _run() is None


def wandb_for(what: str = "report_to=wandb") -> Any:
    """W&B's module, which whoever does not ask for it can do without.

    Raises:
        UserError: it is not installed, which `what` asks for.
    """
    try:
        import wandb

        wandb.init  # noqa: B018  # a folder of runs, `wandb/`, can be imported, too
    except (ImportError, AttributeError):
        raise UserError(f"{what} needs wandb: pip install wandb, or go without") from None
    return wandb


def _run() -> Any:
    """What W&B calls its run; None where nobody has imported W&B, who then has not begun one either."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _stay_offline() -> None:
    os.environ["WANDB_MODE"] = "offline"  # for processes that we start
    wandb_for().setup().settings.mode = "offline"


def unreachable(address: str) -> str | None:
    """Why W&B's server does not answer, or cannot; None if it does."""
    try:
        answer = requests.head(address, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return f"it answers with status {answer.status_code}" if answer.status_code >= 500 else None


def wandb_line() -> str | None:
    """Where the current run is, and how to upload it if it is offline; None when W&B is not running."""
    run = live_run()
    if run is None:
        return None
    if run.offline:
        folder = Path(os.path.relpath(run.settings.sync_dir))
        parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))  # a run that was resumed has several
        if len(parts) > 1:
            return f"W&B run (offline, {len(parts)} parts): upload it with `wandb sync {' '.join(map(str, parts))}`"
        return f"W&B run (offline): {folder}; upload it with `wandb sync` and that folder"
    return f"W&B run: {run.url}"
