"""What makes two runs the same one, and where they were made: settings that count, commit, hardware."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .version import __version__

# What says where and how comfortably a run is made, not what it computes. (The batch size of evaluation is that of
# measuring M_k, too, and then counts.)
HOUSEKEEPING = frozenset(
    {
        "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "disable_tqdm",
        "eval_on_start", "eval_strategy", "eval_steps", "follow_links", "layer_statistics_steps", "logging_steps",
        "logging_strategy", "output_dir", "per_device_eval_batch_size", "plots", "report_to", "resume_from_checkpoint",
        "run_name", "save_only_model", "save_steps", "save_strategy", "save_total_limit", "use_cpu",
    }
)  # fmt: skip


def hardware(settings: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Where runs are made."""
    cuda = torch.cuda.is_available() and not settings.get("use_cpu")
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": threads,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str:
    """Of the checkout that this package is in; or the package's version."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if "hf_clars/__init__.py" not in git("ls-files", "--full-name", str(here)):
            return f"version {__version__}"  # installed inside somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here)).strip()
        return git("rev-parse", "--short=7", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
