"""W&B without a login: offline, without a question, and with one line that says how to upload."""

import os
from collections.abc import Sequence

import requests.utils
import wandb


def keep_wandb_offline_without_login(report_to: str | Sequence[str] | None) -> None:
    """Set `WANDB_MODE=offline` if W&B is asked for, nobody is logged in, and no mode was chosen."""
    if not report_to or "wandb" not in report_to or os.environ.get("WANDB_MODE") or wandb.run is not None:
        return
    settings = wandb.setup().settings
    if not (settings.api_key or settings.identity_token_file or requests.utils.get_netrc_auth(settings.base_url)):
        os.environ["WANDB_MODE"] = "offline"  # for processes that we start
        settings.mode = "offline"


def wandb_line() -> str | None:
    """Where the current run is, and how to upload it if it is offline; None when W&B is not running."""
    run = wandb.run
    if run is None or run.disabled:
        return None
    if run.offline:
        return (
            f"W&B run (offline): {os.path.relpath(run.settings.sync_dir)}; upload it with `wandb sync` and that folder"
        )
    return f"W&B run: {run.url}"
