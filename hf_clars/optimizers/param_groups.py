"""Which parameters are weights, and which biases or of norms: decided by module type and dimension, never by name."""

from typing import Any

from torch import nn

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # Batch-, Instance- and SyncBatchNorm, and timm's subclasses of them
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(model: nn.Module, weight_decay: float, bias_and_norm: str = "eta") -> list[dict[str, Any]]:
    """Two groups of named, trainable parameters: layer-adapted, decayed weights; biases and norm parameters.

    A parameter is a weight when it has two or more dimensions and its module is not a norm. The others are not
    decayed, except under the rules that say otherwise (`bias_and_norm="authors"`, `"paper"`). An empty group is left
    out.
    """
    norm_parameters = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    weights: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim >= 2 and id(parameter) not in norm_parameters
            (weights if is_weight else others).append((name, parameter))
    others_decay = weight_decay if bias_and_norm in ("authors", "paper") else 0.0
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "layer_adaptation": True},
        {"params": others, "weight_decay": others_decay, "layer_adaptation": False},
    ]
    return [group for group in groups if group["params"]]
