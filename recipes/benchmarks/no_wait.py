"""Whether a training step with exact norms ever waits for the GPU, and whether `step()` goes into a CUDA graph.

    python recipes/benchmarks/no_wait.py [--model_name resnet50] [--batch_size 32]

`sync`: forward, backward and `CLARS.step()`, after two that set things up, under
`torch.cuda.set_sync_debug_mode("error")`, which raises where the host waits. `graph`: `CLARS.step()` is captured, with
the norms in tensors that stay in place, and replayed on three gradients; the weights must be those of an optimizer that
was not captured. On a CPU the same is done without watching and capturing.

Prints a line each, writes no_wait.json; exit status 1 where one does not hold.
"""

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command_line
import timm
import torch
from torch import Tensor, nn

from hf_clars import CLARS, PerSampleNorms
from hf_clars.errors import UserError

CLASSES = 10


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = CLARS(model.parameters(), lr=1e-3, norms=PerSampleNorms(model, vectors=False))

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextmanager
def no_waiting(device: torch.device) -> Any:
    """Raises RuntimeError where the host waits for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_waits(model: nn.Module, x: Tensor, y: Tensor) -> None:
    step = training_step(model, x, y)
    step()
    step()
    with no_waiting(x.device):
        step()


def check_graph(model: nn.Module, device: torch.device) -> None:
    """Raises whatever capturing raises, or AssertionError where a replay is another step."""
    start = [p.detach().clone() for p in model.parameters()]
    lr = torch.tensor(1e-2, device=device)  # one that a schedule can change between replays
    pairs = []
    for _ in range(2):
        parameters = [nn.Parameter(p.clone()) for p in start]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        norms = {p: torch.ones((), device=device) for p in parameters if p.ndim >= 2}
        pairs.append((parameters, norms, CLARS(parameters, lr=lr, norms=norms)))
    generator = torch.Generator(device).manual_seed(0)

    def new_gradients() -> None:
        for p, q in zip(pairs[0][0], pairs[1][0], strict=True):
            p.grad.normal_(generator=generator)
            q.grad.copy_(p.grad)
        for (p, norm), other in zip(pairs[0][1].items(), pairs[1][1].values(), strict=True):
            norm.copy_(2 * p.grad.norm())
            other.copy_(norm)

    eager, captured = pairs[0][2], pairs[1][2]
    new_gradients()
    eager.step()
    replay = _capture(captured.step, device)
    for _ in range(3):
        new_gradients()
        eager.step()
        replay()
    for p, q in zip(pairs[0][0], pairs[1][0], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(p, q) for p, q in zip(pairs[0][0], start, strict=True)), "no weight moved"


def _capture(step: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """One step at once, which makes the state; then as many as are asked for, from the graph."""
    if device.type != "cuda":
        step()
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _tried(check: Callable[..., None], *args: Any) -> str:
    try:
        check(*args)
    except Exception as error:  # whatever does not hold is a result
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="resnet50")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", default="no_wait.json")
    options = parser.parse_args()
    if not timm.is_model(options.model_name):
        raise UserError(f"--model_name {options.model_name} is no timm model")
    if min(options.batch_size, options.image_size) < 1:
        raise UserError("--batch_size and --image_size must be at least 1")
    if options.device != "cpu" and not (options.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {options.device} is not available here: choose cpu, or cuda with a GPU")
    command_line.check_file("--json", options.json)
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = timm.create_model(options.model_name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    x = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    x, y = x.to(memory_format=torch.channels_last), torch.randint(CLASSES, (options.batch_size,), device=device)
    found = {"sync": _tried(check_waits, model, x, y)}
    found["graph"] = _tried(check_graph, model, device)  # last, because a broken capture breaks what follows
    for name, reason in found.items():
        print(f"{name}: {reason or 'ok'}" + ("" if device.type == "cuda" else " (on a CPU, which shows nothing)"))
    about = {"command": command_line.command(), **command_line.origin(options.device), "options": vars(options)}
    command_line.write(Path(options.json), {**about, **{name: reason or "ok" for name, reason in found.items()}})
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    command_line.run(main)
