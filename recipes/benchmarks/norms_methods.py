"""Ways to get per-sample gradient norms: ours and the peers', each as `prepare(model, tools) -> step(x, y)`.

`prepare` may change the model it is given. A step is forward and backward of one batch; it leaves the gradients of the
mean loss in `.grad` and returns parameter name → `‖c_i‖` of every sample, in units of that gradient, for the parameters
the method measures. A method that is not installed raises ImportError; one that cannot take a model, whatever it likes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from norms_models import mean_loss, mixes_samples
from torch import Tensor, nn

from hf_clars import PerSampleNorms

Norms = dict[str, Tensor]
Step = Callable[[Tensor, Tensor], Norms]


@dataclass
class Tools:
    """What a method shall compute with: the loss (its forward pass perhaps under autocast) and maybe torch.compile."""

    loss: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
    compile: Callable


def backward_then(read: Callable[[], Norms], model: nn.Module, tools: Tools) -> Step:
    """A step whose backward pass leaves norms behind that `read` collects."""
    forward = tools.compile(model)

    def step(x: Tensor, y: Tensor) -> Norms:
        tools.loss(forward, x, y).backward()
        return read()

    return step


def plain(model: nn.Module, tools: Tools) -> Step:
    return backward_then(dict, model, tools)


def ours(**options: object) -> Callable[[nn.Module, Tools], Step]:
    def prepare(model: nn.Module, tools: Tools) -> Step:
        norms = PerSampleNorms(model, **options)

        def read() -> Norms:
            norms.sums()
            measured = norms.per_sample()
            norms.reset()
            return measured

        return backward_then(read, model, tools)

    return prepare


def opacus(model: nn.Module, tools: Tools) -> Step:
    """All per-sample gradients, from hooks."""
    from opacus import GradSampleModule

    # With "sum" Opacus does not multiply by the batch size what a mean loss has divided by it.
    GradSampleModule(model, loss_reduction="sum")

    def read() -> Norms:
        return {name: sample.flatten(1).norm(dim=1) for name, sample in _take(model, "grad_sample").items()}

    return backward_then(read, model, tools)


def backpack(model: nn.Module, tools: Tools) -> Step:
    """`BatchL2Grad` on the layers it has formulas for; others, BatchNorm among them, are left alone."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    for module in model.modules():
        if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding):
            extend(module)
    forward = tools.compile(model)

    def step(x: Tensor, y: Tensor) -> Norms:
        with backpack(BatchL2Grad()):
            tools.loss(forward, x, y).backward()
        return {name: square.sqrt() for name, square in _take(model, "batch_l2").items()}

    return step


def fastdp(model: nn.Module, tools: Tools) -> Step:
    """The norms of fastDP's mixed ghost clipping, without the clipping. It knows no BatchNorm and leaves it alone."""
    from fastDP.autograd_grad_sample import add_hooks

    for parameter in model.parameters():
        parameter.initially_requires_grad = parameter.requires_grad
    add_hooks(model, loss_reduction="sum", clipping_mode="MixGhostClip", block_heads=[])

    def read() -> Norms:
        for module in model.modules():  # kept by fastDP for the clipped gradients
            module.activations = module.backprops = None
        _take(model, "grad_sample")
        return _take(model, "norm_sample")

    return backward_then(read, model, tools)


def vmap(model: nn.Module, tools: Tools) -> Step:
    """`torch.func`: every sample's gradient at once."""
    _refuse_batch_statistics(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = {name: p.detach() for name, p in parameters.items()}

    def sample_loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return tools.loss(lambda x: torch.func.functional_call(model, values, (x,)), x[None], y[None])

    gradients_of = tools.compile(torch.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0)))

    def step(x: Tensor, y: Tensor) -> Norms:
        norms = {}
        for name, gradients in gradients_of(values, x, y).items():
            parameters[name].grad = gradients.mean(0)
            norms[name] = gradients.flatten(1).norm(dim=1) / len(x)
        return norms

    return step


def loop(model: nn.Module, tools: Tools) -> Step:
    """Batches of one sample."""
    _refuse_batch_statistics(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    forward = tools.compile(model)

    def step(x: Tensor, y: Tensor) -> Norms:
        total, norms = None, []
        for i in range(len(x)):
            loss = tools.loss(forward, x[i : i + 1], y[i : i + 1]) / len(x)
            gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True, materialize_grads=True)
            norms.append(torch.stack(torch._foreach_norm(gradients)))
            if total is None:
                total = gradients
            else:
                torch._foreach_add_(total, gradients)
        for parameter, gradient in zip(parameters.values(), total, strict=True):
            parameter.grad = gradient
        return dict(zip(parameters, torch.stack(norms, dim=1), strict=True))

    return step


METHODS: dict[str, Callable[[nn.Module, Tools], Step]] = {
    "plain": plain,
    "per_sample": ours(bias_and_norm=False),
    "bias_and_norm": ours(bias_and_norm=True),
    "subset": ours(mode="subset", total_batch_size=16384, bias_and_norm=False),  # 512 of them
    "micro_batch": ours(mode="micro_batch", bias_and_norm=False),
    "opacus": opacus,
    "backpack": backpack,
    "fastdp": fastdp,
    "vmap": vmap,
    "loop": loop,
}


def exact_norms(model: nn.Module, x: Tensor, y: Tensor) -> Norms:
    """`‖c_i‖` of every layer's weight in float64, by none of the formulas above: slow and obvious.

    A layer's contribution is its own vector-Jacobian product on one sample's input and output gradient. As those come
    from the pass of the whole batch, this holds with train-mode BatchNorm too. `model` becomes float64.
    """
    norms = {}

    def measure(name: str, layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        def contribution(i: int) -> Tensor:
            output = type(layer).forward(layer, inputs[i : i + 1])  # past the hook
            return torch.autograd.grad(output, layer.weight, gradient[i : i + 1])[0]

        with torch.enable_grad():
            norms[f"{name}.weight"] = torch.stack([contribution(i).norm() for i in range(len(inputs))])

    def watch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(partial(measure, name, layer, inputs[0].detach()))

    for name, layer in model.double().named_modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.ndim >= 2:
            layer.register_forward_hook(partial(watch, name))
    mean_loss(model, x.double() if x.is_floating_point() else x, y).backward()
    return norms


def _take(model: nn.Module, field: str) -> Norms:
    """Move what a peer left at the parameters out of there."""
    found = {}
    for name, parameter in model.named_parameters():
        if getattr(parameter, field, None) is not None:
            found[name] = getattr(parameter, field)
            setattr(parameter, field, None)
    return found


def _refuse_batch_statistics(model: nn.Module) -> None:
    if mixes_samples(model):
        raise ValueError("sees samples one by one, BatchNorm in train mode needs the batch")
