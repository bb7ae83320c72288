"""The formulas behind scaling.py: what one optimizer step on N GPUs computes, sends and waits for.

Symbols: N GPUs, g in a node, m = N / g nodes; B images a step in micro-batches of b, accumulated B / (N b) times;
n bytes of a message; α seconds of one hop and β bytes per second of one GPU in one direction, inside a node (₁) and
between nodes (₂); α₀ seconds to start a collective.

All-reduce, the fastest of three:
    ring          α₀ + 2 (N-1-m) α₁ + 2 m α₂ + 2 (N-1)/N n / min(β₁, g β₂)           (one node: 2 (N-1) α₁ and β₁)
    tree          α₀ + 2 (g-1) α₁ + 2 ⌈log₂ m⌉ α₂ + 2 n / min(β₁, g β₂)
                  a chain in each node, a double binary tree between them
    hierarchical  α₀ + 2 (g-1) α₁ + 2 (g-1)/g n / β₁ + the better of ring and tree of n/g bytes over m nodes, at β₂
                  reduce-scatter in the node, all-reduce among the GPUs of one number, all-gather in the node
A ring or a tree uses all network cards of a node at once, hence g β₂. Each in two protocols, as in NCCL, the faster
counts: one of short hops and a quarter of the bandwidth (LL), one of longer hops and nearly all of it (LL128). Hops
are counted as NCCL's own model counts them (src/graph/tuning.cc), and their latencies are those of its tables.

Compute: a GPU does rate · b / (b + b½) images/s, divided by what exact norms cost, in every micro-batch. The optimizer
moves 7 numbers of 4 bytes a parameter (w for its norm; w, gradient and momentum read; w, momentum and the cleared
gradient written) at the speed of the memory.

Communication: DDP all-reduces the gradient (float32; buckets of 25 MiB, the first of 1 MiB) only in the backward pass
of the step's LAST micro-batch. A bucket is ready when as much of that pass is over as of the gradient is in it and
those before it, and then waits for those; exposed is what lasts beyond the backward pass, at least the last bucket.
Nothing else is overlapped: DDP's broadcast of BatchNorm's running statistics, once a step, counted as half an
all-reduce; CLARS's all-reduce of [2, K] float32 (sums of ‖c_i‖ and of ‖c_i‖² of the K measured tensors, which are those
of two or more dimensions), for which the step waits; and one of a few float32 for the trainer's check of the step.
Bytes are what a GPU sends, 2 (N-1)/N n.

Efficiency is images/s ÷ (N × images/s of one GPU that accumulates the largest micro-batches alone). Scaling stops where
it falls under --stop. An epoch has ⌊1,281,167 / B⌋ steps. Evaluation, checkpoints, stragglers and, unless --decode_rate
says how many images/s are decoded for each GPU, the input are not in the hours. Of accuracy the model says nothing,
though BatchNorm's statistics are those of a micro-batch, which shrinks when there is nothing left to accumulate.
"""

import argparse
import math
from dataclasses import dataclass

IMAGES = 1_281_167
MIB = 2**20
CHECK_NUMBERS = 14  # of the trainer's check, 7 of twice the size


@dataclass(frozen=True)
class Protocol:
    """Seconds to start, seconds a hop inside a node and between nodes, share of the bandwidths."""

    start: float
    intra: float
    inter: float
    share: float


@dataclass(frozen=True)
class Network:
    """`node` GPUs share a node; bytes per second."""

    node: int
    intra_bandwidth: float
    inter_bandwidth: float
    protocols: tuple[Protocol, ...]

    def all_reduce(self, size: float, gpus: int) -> tuple[float, str]:
        """Seconds of an all-reduce of `size` bytes, and the algorithm that is the fastest."""
        if gpus == 1:
            return 0.0, "none"
        return min(time for protocol in self.protocols for time in self._times(protocol, size, gpus))

    def _times(self, protocol: Protocol, size: float, gpus: int) -> list[tuple[float, str]]:
        g, m = min(self.node, gpus), math.ceil(gpus / self.node)
        intra, inter = self.intra_bandwidth * protocol.share, self.inter_bandwidth * protocol.share
        across = intra if m == 1 else min(intra, g * inter)
        crossings = 2 * m if m > 1 else 0
        chain = 2 * (g - 1) * protocol.intra
        levels = 2 * math.ceil(math.log2(m)) * protocol.inter
        ring = (2 * (gpus - 1) - crossings) * protocol.intra + crossings * protocol.inter
        times = [
            (protocol.start + ring + 2 * (gpus - 1) / gpus * size / across, "ring"),
            (protocol.start + chain + levels + 2 * size / across, "tree"),
        ]
        if m > 1 and g > 1:
            share = size / g / inter
            between = min(2 * (m - 1) * protocol.inter + 2 * (m - 1) / m * share, levels + 2 * share)
            times.append((protocol.start + chain + 2 * (g - 1) / g * size / intra + between, "hierarchical"))
        return times


@dataclass(frozen=True)
class Model:
    name: str
    parameters: int
    layers: int
    buffers: int
    rate: float
    norm_cost: float


def buckets(size: float, cap: float) -> list[float]:
    """Bytes of DDP's buckets, in the order in which the backward pass fills them."""
    first = min(size, MIB)
    sizes, rest = [first], size - first
    while rest > 0:
        sizes.append(min(rest, cap))
        rest -= sizes[-1]
    return sizes


def exposed(network: Network, sizes: list[float], gpus: int, backward: float) -> float:
    """Seconds that the all-reduces of all buckets last beyond the backward pass that fills them."""
    filled = end = 0.0
    for size in sizes:
        filled += size
        end = max(end, backward * filled / sum(sizes)) + network.all_reduce(size, gpus)[0]
    return end - backward if gpus > 1 else 0.0


def micro_batch(per_gpu: int, largest: int) -> int:
    """The largest micro-batch up to `largest` of which `per_gpu` images are a multiple."""
    return max(b for b in range(1, min(per_gpu, largest) + 1) if per_gpu % b == 0)


def step(model: Model, network: Network, batch: int, gpus: int, options: argparse.Namespace) -> dict:
    """One row: times in seconds, sizes in bytes."""
    row: dict = {"model": model.name, "gpus": gpus, "batch": batch}
    if batch % gpus:
        return row | {"impossible": f"{batch} images cannot be shared by {gpus} GPUs"}
    b = micro_batch(batch // gpus, options.micro_batch)
    accumulation = batch // gpus // b

    def compute(size: int) -> float:
        return model.norm_cost * (size + options.half_saturation) / model.rate

    update = 7 * 4 * model.parameters / (options.memory_bandwidth * 1e9)
    gradient = 4 * model.parameters
    vector = 4 * 4 * model.layers
    clars, algorithm = network.all_reduce(vector, gpus)
    check = network.all_reduce(4 * CHECK_NUMBERS, gpus)[0]
    statistics_of_norms = network.all_reduce(4 * model.buffers, gpus)[0] / 2
    waits = exposed(network, buckets(gradient, options.bucket * MIB), gpus, options.backward * compute(b))
    work = accumulation * compute(b)
    seconds = work + update + waits + clars + check + statistics_of_norms
    if options.decode_rate:
        seconds = max(seconds, batch / gpus / options.decode_rate)  # workers decode while the GPU computes
    alone = options.micro_batch / (compute(options.micro_batch) + update * options.micro_batch / batch)
    wire = 2 * (gpus - 1) / gpus
    return row | {
        "micro_batch": b,
        "accumulation": accumulation,
        "gradient_bytes": wire * gradient,
        "clars_bytes": wire * vector,
        "check_bytes": wire * 4 * CHECK_NUMBERS,
        "compute_s": work,
        "update_s": update,
        "gradient_s": network.all_reduce(gradient, gpus)[0],
        "gradient_exposed_s": waits,
        "clars_s": clars,
        "clars_algorithm": algorithm,
        "check_s": check,
        "batch_norm_s": statistics_of_norms,
        "step_s": seconds,
        "images_per_s": batch / seconds,
        "efficiency": batch / seconds / (gpus * alone),
        "hours": options.epochs * (IMAGES // batch) * seconds / 3600,
    }


def stops(model: Model, network: Network, batch: int, options: argparse.Namespace) -> str:
    """Where adding GPUs, doubling them from one node on, ends, and why."""
    gpus, rows = options.node, []
    while gpus <= batch and batch % gpus == 0:
        row = step(model, network, batch, gpus, options)
        rows.append(row)
        if row["efficiency"] < options.stop:
            break
        gpus *= 2
    if not rows:
        return f"{batch} images cannot be shared by a node of {options.node} GPUs"
    last = rows[-1]
    small = last["compute_s"] - model.norm_cost * batch / last["gpus"] / model.rate
    waits = last["step_s"] - last["compute_s"] - last["update_s"]
    reached = last["efficiency"] < options.stop
    where = f"efficiency under {options.stop:.0%} from" if reached else "not up to the last doubling that divides B,"
    return (
        f"{where} {last['gpus']} GPUs ({last['efficiency']:.1%}, {batch // last['gpus']} images each)\n"
        f"    {1e3 * small:.1f} ms of the step lost to small micro-batches, {1e3 * waits:.1f} ms to waiting; "
        f"nothing is accumulated from {math.ceil(batch / options.micro_batch)} GPUs on"
    )
