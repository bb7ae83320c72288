"""What `optim_args="eta=0.01,mode=subset"` may say, and what is assumed where it is silent."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import UserError
from ..norms import MODES
from ..optimizers import check_hyperparameters

OPTIMIZERS = {"clars": 1e-2, "lars": 1e-3}  # name → the paper's η


@dataclass(frozen=True)
class OptimizerOptions:
    """Everything but the learning rate that `optim="clars"` and `"lars"` take; `mode` and `norm_samples` only CLARS."""

    eta: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    vectors: str = "eta"
    decay_in_denominator: bool = False
    mode: str = "per_sample"
    norm_samples: int = 512

    def override(self, optim: str, optim_args: Mapping[str, str]) -> "OptimizerOptions":
        """These options with those of `optim_args` in their place, all checked.

        Raises:
            UserError: an unknown key, a value that cannot be read, or one out of range.
        """
        known = {f.name: f.type for f in fields(self) if optim == "clars" or f.name not in ("mode", "norm_samples")}
        values: dict[str, Any] = {}
        for key, text in optim_args.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"optim_args: {key!r} is unknown to optim={optim!r}{hint} It takes {', '.join(known)}")
            values[key] = _read(key, text, known[key])
        options = replace(self, **values)
        options.check()
        return options

    def check(self) -> None:
        check_hyperparameters(
            lr=0.0, momentum=self.momentum, eta=self.eta, weight_decay=self.weight_decay, vectors=self.vectors
        )
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} is unknown: choose one of {', '.join(MODES)}")
        if self.norm_samples < 1:
            raise UserError(f"norm_samples={self.norm_samples} must be at least 1")


def parse_optim_args(text: str | None) -> dict[str, str]:
    """`"eta=0.01, mode=subset"` → `{"eta": "0.01", "mode": "subset"}`."""
    pairs = [part.partition("=") for part in (text or "").replace(" ", "").split(",") if part]
    for key, equals, value in pairs:
        if not equals or not key or not value:
            raise UserError(f"optim_args={text!r}: {key!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}


def refuse_deepspeed(deepspeed: Any, who: str = "CLARS and LARS") -> None:
    """DeepSpeed's ZeRO flattens and shards gradients; layers, and so layer norms, are no longer visible."""
    if deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        raise UserError(
            f"{who} cannot run under DeepSpeed: ZeRO flattens and shards the gradients that are needed layer by layer. "
            "Use DDP or FSDP2 (recipes/accelerate/)"
        )


def refuse_data_parallel(args: Any) -> None:
    """`nn.DataParallel` runs copies of the model, whose gradients and layers nobody sees."""
    if args.n_gpu > 1:
        raise UserError(
            f"one process sees {args.n_gpu} GPUs: start a process for each with `accelerate launch --num_processes "
            f"{args.n_gpu} ...`, or show this one a single GPU with CUDA_VISIBLE_DEVICES"
        )


def _read(key: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise UserError(f"optim_args: {key}={text!r} must be true or false")
        return text.lower() in ("true", "1")
    try:
        return kind(text)
    except ValueError:
        raise UserError(
            f"optim_args: {key}={text!r} is not {'a whole number' if kind is int else 'a number'}"
        ) from None
