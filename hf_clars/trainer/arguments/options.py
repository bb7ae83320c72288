"""What `optim_args="eta=0.01,mode=subset"` may say, and what is assumed where it is silent."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import UserError, did_you_mean
from ...norms import MODES, check_untracked
from ...optimizers import check_hyperparameters
from .unknown_keys import what_instead

# Name → the paper's η; of mNAG and AdaScale, where all layers have one rate, a formality.
OPTIMIZERS = {"clars": 1e-2, "lars": 1e-3, "mnag": 1.0, "adascale": 1.0}
OURS = ", ".join((*OPTIMIZERS, "lamb"))  # all names that are registered
AUTHORS = "authors"  # the `mode` that is no way to measure alone but a method, with an optimizer of its own

_ONE_RATE = ("eta", "bias_and_norm", "decay_in_denominator", "mode", "norm_samples", "untracked")
NOT_TAKEN: dict[str, tuple[str, ...]] = {
    "clars": (),
    "lars": ("mode", "norm_samples", "untracked"),
    "mnag": _ONE_RATE,
    "adascale": _ONE_RATE,
}


@dataclass(frozen=True)
class OptimizerOptions:
    """The keys of `optim_args`: all but the learning rate that `optim="clars"` takes, and the others in part.

    `ClarsTrainingArguments` has each of them as a field, and `hf-clars train` as a flag and a key of its file; what
    stands in `optim_args` wins. The learning rate, γ_scale, is `learning_rate`.

    Attributes:
        eta: η of Eq. 3 and 5, above 0; 0.01 for clars (the paper), 0.001 for lars (You et al., 2017).
        momentum: β of Eq. 4, in [0, 1); 0.9, as in the paper. Of all four optimizers.
        weight_decay: λ, at least 0; 0. The paper does not mention it; `λ w` is added to the gradient of weights. Of all
            four; for lars and mnag in a plain Trainer it is a setting of `TrainingArguments` instead.
        bias_and_norm: the rate of biases and norm weights, see `CLARS`: `eta` (default), `mlperf`, `authors` (default
            of mode=authors) or `paper`, which is Eq. 5 for every tensor. Of clars and lars.
        decay_in_denominator: true or false, whether `λ‖w‖` is added to the denominator; by default for lars alone (You
            et al., 2017), as Eq. 5 is without. Of clars and lars.
        mode: how clars measures, see `PerSampleNorms`: `per_sample` (default; Eq. 5), `subset` (the paper's J_t),
            `micro_batch`, or `authors`, which is the authors' code and needs `ClarsTrainer`.
        norm_samples: `|J_t|` of mode=subset, a whole number of at least 1; None stands for the paper's 512.
        untracked: what clars does about what cannot be measured, `stand_in` (None stands for it) or `error`.
    """

    eta: float
    momentum: float
    weight_decay: float
    bias_and_norm: str
    decay_in_denominator: bool
    mode: str
    norm_samples: int | None = None
    untracked: str | None = None

    @classmethod
    def in_force(cls, optim: str, given: Mapping[str, Any], optim_args: Mapping[str, str]) -> "OptimizerOptions":
        """Those of `optim_args`, else those given otherwise (None: not given), else the defaults; all checked.

        Raises:
            UserError: an unknown key, a value that cannot be read, or one out of range.
        """
        known = {f.name: f.type for f in fields(cls) if f.name not in NOT_TAKEN[optim]}
        values = {name: value for name, value in given.items() if value is not None}
        for key, text in optim_args.items():
            if key not in known:
                takers = {f.name: [name for name in OPTIMIZERS if f.name not in NOT_TAKEN[name]] for f in fields(cls)}
                hint = what_instead(key, optim, list(known), takers)
                raise UserError(f"optim_args: {key!r} is unknown to optim={optim!r}; {hint}")
            values[key] = _read(key, text, known[key])
        defaults = {
            "eta": OPTIMIZERS[optim],
            "momentum": 0.9,
            "weight_decay": 0.0,
            "bias_and_norm": "authors" if optim == "clars" and values.get("mode") == AUTHORS else "eta",
            "decay_in_denominator": optim == "lars",
            "mode": "per_sample",
        }
        options = cls(**{**defaults, **values})
        options._check()
        return options

    def layerwise_keywords(self) -> dict[str, Any]:
        """What LARS, CLARS and the authors' CLARS take of them, as keywords."""
        taken = ("momentum", "eta", "weight_decay", "bias_and_norm", "decay_in_denominator")
        return {name: getattr(self, name) for name in taken}

    def _check(self) -> None:
        check_hyperparameters(
            lr=0.0,
            momentum=self.momentum,
            eta=self.eta,
            weight_decay=self.weight_decay,
            bias_and_norm=self.bias_and_norm,
        )
        if self.mode not in (*MODES, AUTHORS):
            raise UserError(f"mode={self.mode!r} is unknown; {did_you_mean(self.mode, (*MODES, AUTHORS))}")
        if self.norm_samples is not None and self.norm_samples < 1:
            raise UserError(f"norm_samples={self.norm_samples} must be at least 1")
        if self.norm_samples is not None and self.mode != "subset":
            raise UserError(f"norm_samples={self.norm_samples} is for mode=subset, not {self.mode}")
        if self.untracked is not None and self.mode == AUTHORS:
            raise UserError(f"untracked={self.untracked} is nothing that mode=authors takes: leave it out")
        check_untracked(self.untracked or "stand_in")


def parse_optim_args(text: str | None) -> dict[str, str]:
    """`"eta=0.01, mode=subset"` → `{"eta": "0.01", "mode": "subset"}`."""
    plain = (text or "").replace(" ", "")
    pairs = [part.partition("=") for part in plain.split(",")] if plain else []
    values: dict[str, str] = {}
    for key, equals, value in pairs:
        if not equals or not key or not value or "=" in value:  # which transformers cannot take apart
            raise UserError(f"optim_args={text!r}: {key!r} is not of the form key=value")
        if key in values:
            raise UserError(f"optim_args={text!r}: {key!r} stands twice")
        values[key] = value
    return values


def check_lamb(optim_args: Mapping[str, str]) -> None:
    """`optim="lamb"` takes what it needs from the fields that AdamW has, too."""
    if optim_args:
        raise UserError(
            f"optim_args: {next(iter(optim_args))!r} is unknown to optim='lamb', which takes none; its options are "
            "adam_beta1, adam_beta2, adam_epsilon and weight_decay"
        )


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
    if kind not in (int | None, float):
        return text
    try:
        return float(text) if kind is float else int(text)
    except ValueError:
        raise UserError(
            f"optim_args: {key}={text!r} is not {'a number' if kind is float else 'a whole number'}"
        ) from None
