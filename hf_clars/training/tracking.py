"""W&B that never stops a run: offline without a login or without a network, and going on where a run was cut off."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
import requests.utils
import wandb

_PATIENCE = 10  # seconds for an answer of any kind

logger = logging.getLogger(__name__)


def keep_wandb_offline_without_login(report_to: str | Sequence[str] | None) -> None:
    """Set `WANDB_MODE=offline` if W&B is asked for, nobody is logged in, and no mode was chosen."""
    if not _is_asked_for(report_to) or os.environ.get("WANDB_MODE"):
        return
    settings = wandb.setup().settings
    if not (settings.api_key or settings.identity_token_file or requests.utils.get_netrc_auth(settings.base_url)):
        _stay_offline()


def begin_wandb(args: Any, run_id: str | None) -> None:
    """Begin the run, or go on with run `run_id`. Offline if W&B cannot be reached. For the main process."""
    if not _is_asked_for(args.report_to) or os.environ.get("WANDB_MODE") == "disabled":
        return
    options = {"project": os.environ.get("WANDB_PROJECT", "huggingface"), "name": args.run_name}
    if run_id is not None:
        options |= {"id": run_id, "resume": "allow"}
    if os.environ.get("WANDB_MODE", "online") == "online":
        trouble = _unreachable(wandb.setup().settings.base_url)
        if trouble is None:
            try:
                wandb.init(**options)
                return
            except wandb.errors.CommError as error:
                trouble = " ".join(str(error).split())
        logger.warning("W&B cannot be reached (%s): the run is kept offline, for `wandb sync` afterwards", trouble)
        _stay_offline()
    wandb.init(**options)


def wandb_run_id() -> str | None:
    """Of the run at work, if there is one."""
    return wandb.run.id if wandb.run is not None and not wandb.run.disabled else None


def _is_asked_for(report_to: str | Sequence[str] | None) -> bool:
    return "wandb" in (report_to or ()) and wandb.run is None


def _stay_offline() -> None:
    os.environ["WANDB_MODE"] = "offline"  # for processes that we start
    wandb.setup().settings.mode = "offline"


def _unreachable(address: str) -> str | None:
    try:
        answer = requests.head(address, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return f"it answers with status {answer.status_code}" if answer.status_code >= 500 else None


def wandb_line() -> str | None:
    """Where the current run is, and how to upload it if it is offline; None when W&B is not running."""
    run = wandb.run
    if run is None or run.disabled:
        return None
    if run.offline:
        folder = Path(os.path.relpath(run.settings.sync_dir))
        parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))  # a run that was resumed has several
        if len(parts) > 1:
            return f"W&B run (offline, {len(parts)} parts): upload it with `wandb sync {' '.join(map(str, parts))}`"
        return f"W&B run (offline): {folder}; upload it with `wandb sync` and that folder"
    return f"W&B run: {run.url}"
