"""Activations that are computed again in the backward pass, as each library switches that on."""

from torch import nn


def checkpoint_activations(model: nn.Module) -> None:
    """Of a model in eval mode; raises what the library raises where it does not know how to.

    transformers does so in train mode alone: that is then the mode of whatever does it, with no dropout in it.
    """
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)  # timm's is not reentrant, unless it is told to be
    else:
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing")
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and "Drop" in type(module).__name__)):
                setattr(module, name, 0.0)
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
