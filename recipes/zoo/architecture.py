"""An architecture of the zoo: how it is built, what it is given, what it returns."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LARGEST = 150_000_000  # parameters of a model that still runs

Inputs = dict[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Setting:
    """How all architectures run.

    Args:
        batch: samples.
        checkpointing: activations are computed again in the backward pass, sequences and images are longer.
        backend: of torch.compile for the pass that is measured; "" for none.
    """

    batch: int = 3
    checkpointing: bool = False
    backend: str = ""

    @property
    def length(self) -> int:
        """Of sequences of tokens. Long ones have more positions than per-sample products of tiny layers cost."""
        return 60 if self.checkpointing else 8


@dataclass
class Case:
    """An architecture: what it is called, and how to build it with inputs that it accepts."""

    name: str
    build: Callable[[Setting], tuple[nn.Module, Inputs]]


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def refuse_large(model: nn.Module) -> None:
    if count_parameters(model) > LARGEST:
        raise ValueError(f"{count_parameters(model) / 1e6:.0f} million parameters at its smallest")


def call(model: nn.Module, inputs: Inputs, samples: slice = slice(None)) -> list[Tensor]:
    """The model's outputs, each with the samples as its first dimension."""
    torch.manual_seed(1)  # for those that draw something even in eval mode
    if isinstance(inputs, dict):
        outputs = model(**{k: v[samples] for k, v in inputs.items()})
    else:
        outputs = model(*(v[samples] for v in inputs))
    if isinstance(outputs, dict):
        for keys in (("logits",), ("prediction_logits",), ("image_embeds", "text_embeds"), ("last_hidden_state",)):
            if all(isinstance(outputs.get(k), Tensor) for k in keys):
                return [outputs[k] for k in keys]
        outputs = tuple(outputs.values())
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]


def wants_float32(error: Exception) -> bool:
    """Whether the model failed because it insists on float32 somewhere."""
    return (
        torch.get_default_dtype() is torch.float64
        and isinstance(error, RuntimeError)
        and bool(re.search("dtype|Double|Float|to type float", str(error)))
    )
