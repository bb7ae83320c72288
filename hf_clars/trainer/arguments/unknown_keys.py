"""What to write in the place of a key of `optim_args` that an optimizer of ours does not take."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from transformers import TrainingArguments

from .clars_fields import ClarsFields

# Names that others have for what is known here, and what others have and this has not.
_RENAMED = {
    "trust_coefficient": "eta", "trust_coeff": "eta", "trust_ratio": "eta", "eeta": "eta",
    "beta": "momentum", "beta1": "momentum", "betas": "momentum", "adam_beta1": "momentum",
    "always_adapt": "bias_and_norm", "exclude_from_layer_adaptation": "bias_and_norm",
    "decay": "weight_decay", "wd": "weight_decay", "samples": "norm_samples", "num_samples": "norm_samples",
}  # fmt: skip
_RATE = ("lr", "gamma", "gamma_scale", "lr_scale")
_ABSENT = {
    **dict.fromkeys(("eps", "epsilon"), "nothing is added to denominators"),
    **dict.fromkeys(
        ("nesterov", "dampening"), "momentum is Nesterov's without dampening, and heavy-ball for mode=authors"
    ),
    **dict.fromkeys(("beta2", "amsgrad"), "there are no second moments"),
    **dict.fromkeys(("fused", "foreach", "capturable"), "the fastest form is taken by itself"),
    **dict.fromkeys(("maximize", "differentiable"), "losses are minimised, and steps are not differentiated"),
    **dict.fromkeys(("clip", "trust_clip", "max_trust_ratio"), "ratios have no bound to set"),
}


def what_instead(key: str, optim: str, known: Sequence[str], takers: Mapping[str, Sequence[str]]) -> str:
    """One sentence that follows `optim_args: 'key' is unknown to optim='clars'; `.

    Args:
        key: that is unknown.
        optim: to this optimizer.
        known: keys that it takes.
        takers: key → the optimizers that take it.
    """
    takes = f"it takes {', '.join(known)}"
    if key in takers:
        return f"it is for {', '.join(takers[key])}; {takes}"
    name = _RENAMED.get(key)
    if name is not None:
        return f"its name here is {name!r}" if name in known else f"{optim} has no such thing; {takes}"
    if key in _RATE:
        return "give learning_rate, which is γ_scale, beside optim_args"
    if key in _ABSENT:
        return f"{_ABSENT[key]}; {takes}"
    settings = [*TrainingArguments.__dataclass_fields__, *ClarsFields.__dataclass_fields__]
    near = [key] if key in settings else difflib.get_close_matches(key.lower(), [*known, *settings], n=1)
    if not near:
        return takes
    if near[0] in known:
        return f"did you mean {near[0]!r}? {takes[0].upper()}{takes[1:]}"
    kind = "TrainingArguments" if near[0] in TrainingArguments.__dataclass_fields__ else "ClarsTrainingArguments"
    if near[0] == key:
        return f"it is a setting of {kind}: give {key} beside optim_args"
    return f"did you mean {near[0]}, a setting of {kind}, to give beside optim_args? {takes[0].upper()}{takes[1:]}"
