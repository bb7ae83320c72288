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
        side: of images, at least; whatever is the least that a network takes, by default.
        whole: networks have all their layers, and transformers' are 256 wide, on sequences of 128 tokens.
    """

    batch: int = 3
    checkpointing: bool = False
    backend: str = ""
    side: int = 0
    whole: bool = False

    @property
    def length(self) -> int:
        """Of sequences of tokens. Long ones have more positions than per-sample products of tiny layers cost."""
        return 128 if self.whole else 60 if self.checkpointing else 8


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


def functional(outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """f_i of each sample: random linear plus square."""
    return sum(((o * w + 0.5 * o.square()).flatten(1).mean(1)) for o, w in zip(outputs, weights, strict=True))


def one_line(error: BaseException) -> str:
    message = (str(error).strip() or "?").splitlines()[0]
    return f"{type(error).__name__}: {message[:150]}"
