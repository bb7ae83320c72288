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
    "decay": "weight_decay", "wd": "weight_decay", "samples": "norm_samples", "num_samples": "norm_samples",
}  # fmt: skip
_RATE = ("lr", "gamma", "gamma_scale", "lr_scale")
_ABSENT = {
    **dict.fromkeys(("eps", "epsilon"), "nothing is added to a denominator: where it is zero the ratio is 1"),
    **dict.fromkeys(("nesterov", "dampening"), "the momentum is Nesterov's, by Eq. 4, without dampening"),
    **dict.fromkeys(("beta2", "amsgrad"), "there are no second moments"),
    **dict.fromkeys(("fused", "foreach", "capturable"), "the fastest form is taken by itself"),
    **dict.fromkeys(("maximize", "differentiable"), "losses are minimised, and steps are not differentiated"),
    **dict.fromkeys(("clip", "trust_clip", "max_trust_ratio"), "ratios have no bound; mode=authors of clars has one"),
    **dict.fromkeys(("always_adapt", "exclude", "exclude_from_layer_adaptation"), "bias_and_norm says what is adapted"),
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
    if key in TrainingArguments.__dataclass_fields__ or key in ClarsFields.__dataclass_fields__:
        return f"it is a setting of its own: give {key} beside optim_args"
    near = difflib.get_close_matches(key.lower(), [*known, *_RATE], n=1)
    if near and near[0] in known:
        return f"did you mean {near[0]!r}? {takes[0].upper()}{takes[1:]}"
    return takes
