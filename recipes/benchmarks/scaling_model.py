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
class Network:
    """`node` GPUs share a node; bandwidths in bytes per second, times in seconds."""

    node: int
    intra_bandwidth: float
    inter_bandwidth: float
    protocols: list[tuple[float, float, float, float]]  # start, hop inside a node, hop between, share of bandwidths

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce of `size` bytes."""
        return 0.0 if gpus == 1 else min(self._fastest(*protocol, size, gpus) for protocol in self.protocols)

    def _fastest(self, start: float, hop: float, far_hop: float, share: float, size: float, gpus: int) -> float:
        g, m = min(self.node, gpus), math.ceil(gpus / self.node)
        intra, inter = self.intra_bandwidth * share, self.inter_bandwidth * share
        across = intra if m == 1 else min(intra, g * inter)
        crossings = 2 * m if m > 1 else 0
        chain, levels = 2 * (g - 1) * hop, 2 * math.ceil(math.log2(m)) * far_hop
        ring = (2 * (gpus - 1) - crossings) * hop + crossings * far_hop + 2 * (gpus - 1) / gpus * size / across
        times = [ring, chain + levels + 2 * size / across]
        if m > 1 and g > 1:
            part = size / g / inter
            between = min(2 * (m - 1) * far_hop + 2 * (m - 1) / m * part, levels + 2 * part)
            times.append(chain + 2 * (g - 1) / g * size / intra + between)
        return start + min(times)


@dataclass(frozen=True)
class Model:
    """Counts of a timm model: parameters, tensors of two or more dimensions, numbers in float buffers."""

    name: str
    parameters: int
    layers: int
    buffers: int
    rate: float
    norm_cost: float


def buckets(size: float, cap: float) -> list[float]:
    """Bytes of DDP's buckets, in the order in which the backward pass fills them."""
    sizes = [min(size, MIB)]
    while (rest := size - sum(sizes)) > 0:
        sizes.append(min(rest, cap))
    return sizes


def exposed(network: Network, sizes: list[float], gpus: int, backward: float) -> float:
    """Seconds that the all-reduces of all buckets last beyond the backward pass that fills them."""
    filled = end = 0.0
    for size in sizes:
        filled += size
        end = max(end, backward * filled / sum(sizes)) + network.all_reduce(size, gpus)
    return end - backward if gpus > 1 else 0.0


def step(model: Model, network: Network, batch: int, gpus: int, options: argparse.Namespace) -> dict:
    """What the table says of B images on N GPUs; nothing where B is no multiple of N."""
    if batch % gpus:
        return {"gpus": gpus}
    share = batch // gpus
    b = max(b for b in range(1, min(share, options.micro_batch) + 1) if share % b == 0)

    def compute(size: int) -> float:
        return model.norm_cost * (size + options.half_saturation) / model.rate

    update = 7 * 4 * model.parameters / (options.memory_bandwidth * 1e9)
    gradient, vector, check = 4 * model.parameters, 4 * 4 * model.layers, 4 * CHECK_NUMBERS
    clars = network.all_reduce(vector, gpus)
    other = update + network.all_reduce(check, gpus) + network.all_reduce(4 * model.buffers, gpus) / 2
    waits = exposed(network, buckets(gradient, options.bucket * MIB), gpus, options.backward * compute(b))
    work = share // b * compute(b)
    seconds = work + waits + clars + other
    if options.decode_rate:
        seconds = max(seconds, share / options.decode_rate)  # workers decode while the GPU computes
    alone = options.micro_batch / (compute(options.micro_batch) + update * options.micro_batch / batch)
    sent = 2 * (gpus - 1) / gpus
    return {
        "gpus": gpus,
        "micro_batch": b,
        "accumulation": share // b,
        "gradient_mb": sent * gradient / 1e6,
        "clars_bytes": sent * vector,
        "compute_ms": 1e3 * work,
        "exposed_ms": 1e3 * waits,
        "clars_ms": 1e3 * clars,
        "other_ms": 1e3 * other,
        "images_per_s": batch / seconds,
        "efficiency": batch / seconds / (gpus * alone),
        "hours": options.epochs * (IMAGES // batch) * seconds / 3600,
    }


def stops(model: Model, network: Network, batch: int, options: argparse.Namespace) -> int | None:
    """How many GPUs, doubled from one node on, are too many; None where B divides by no such number."""
    gpus = options.node
    while batch % gpus == 0:
        if step(model, network, batch, gpus, options)["efficiency"] < options.stop:
            return gpus
        gpus *= 2
    return None
