"""A model of one optimizer step on many GPUs: how long it computes, how long it waits, and where scaling stops.

    python recipes/benchmarks/scaling.py [--models resnet50] [--gpus 8 64 256 1024] [--batch_sizes 16384 65536]
    torchrun --nproc_per_node 2 recipes/benchmarks/scaling.py --measure

The second checks the part of the model that one machine can check: it measures all-reduces between processes (gloo, or
NCCL with --backend nccl), fits α and β to the smallest and the largest message, and prints what the model then says of
those between, of the model's gradient and of CLARS's vector, beside what was measured.

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

Defaults are vendors' figures (DGX H100, a 400 Gb/s card for each GPU; NCCL's tables), counts, or assumptions, and what
is assumed is printed as such.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass

IMAGES = 1_281_167
# parameters, tensors of ≥ 2 dimensions, float32 numbers in buffers: counted by timm 1.0, for where it is missing;
# images/s of one GPU at large micro-batches: assumption, bf16 and channels_last on an H100;
# time with exact norms ÷ without: README, every sample, 224 px, on a CPU; on a GPU an assumption.
MODELS = {
    "resnet50": (25_557_032, 54, 53_120, 2500.0, 1.03),
    "densenet121": (7_978_856, 121, 83_648, 1300.0, 1.03),
    "mobilenetv2_100": (3_504_872, 53, 34_112, 3500.0, 1.09),
}
MIB = 2**20
CHECK_NUMBERS = 4  # of the trainer's check


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
    vector = 2 * 4 * model.layers
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


HEAD = (
    f"{'GPUs':>5} {'b × accum.':>10} {'gradient':>9} {'CLARS':>6} {'compute':>9} {'exposed':>8} {'CLARS':>7} "
    f"{'other':>7} {'images/s':>10} {'effic.':>6} {'hours':>7}\n"
    f"{'':>5} {'':>10} {'MB / GPU':>9} {'bytes':>6} {'ms':>9} {'ms':>8} {'ms':>7} {'ms':>7} {'':>10} {'':>6} {'':>7}"
)


def line(row: dict) -> str:
    if "impossible" in row:
        return f"{row['gpus']:>5} {row['impossible']}"
    other = row["update_s"] + row["check_s"] + row["batch_norm_s"]
    shape = f"{row['micro_batch']} × {row['accumulation']}"
    return (
        f"{row['gpus']:>5} {shape:>10} {row['gradient_bytes'] / 1e6:>9.1f} {row['clars_bytes']:>6.0f} "
        f"{1e3 * row['compute_s']:>9.1f} {1e3 * row['gradient_exposed_s']:>8.2f} {1e3 * row['clars_s']:>7.3f} "
        f"{1e3 * other:>7.2f} {row['images_per_s']:>10,.0f} {row['efficiency']:>6.1%} {row['hours']:>7.2f}"
    )


def count(name: str) -> tuple[int, int, int] | None:
    """Parameters, tensors of two or more dimensions and numbers in float buffers; None without timm."""
    try:
        import timm
        import torch
    except ImportError:
        return None
    if not timm.is_model(name):
        sys.exit(f"error: --models {name} is no timm model")
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters = list(model.parameters())
    floats = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return sum(p.numel() for p in parameters), sum(p.ndim >= 2 for p in parameters), floats


def models(options: argparse.Namespace) -> list[Model]:
    chosen = []
    for name in options.models:
        if name not in MODELS and not (options.parameters and options.layers) and count(name) is None:
            sys.exit(f"error: without timm, --models {name} wants --parameters and --layers")
        known = MODELS.get(name, (0, 0, 0, 2000.0, 1.05))
        parameters, layers, buffers = count(name) or known[:3]
        chosen.append(
            Model(
                name,
                options.parameters or parameters,
                options.layers or layers,
                buffers,
                options.rate or known[3],
                options.norm_cost or known[4],
            )
        )
    return chosen


def measure(options: argparse.Namespace) -> dict | None:
    """All-reduces of this group of processes against the model with α and β fitted to two of them; rank 0 reports."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if options.backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    world = dist.get_world_size()

    def seconds(size: int) -> float:
        """Median over rounds of the slowest process's time."""
        data = torch.zeros(max(size // 4, 1), device=device)
        rounds = max(9, min(200, int(100e6 / max(size, 1))))
        times = []
        for number in range(-3, rounds):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(data)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 0:
                times.append(time.perf_counter() - start)
        slowest = torch.tensor(times, dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return statistics.median(slowest.tolist())

    sizes = [64, 4096, 65536, MIB, 4 * MIB, 16 * MIB, 64 * MIB]
    messages = {f"{size:,} bytes": [size] for size in sizes}
    for model in models(options):
        parts = buckets(4 * model.parameters, options.bucket * MIB)
        messages[f"{model.name}: CLARS's vector"] = [8 * model.layers]
        messages[f"{model.name}: gradient, {len(parts)} buckets"] = [int(part) for part in parts]
    measured = {name: sum(map(seconds, parts)) for name, parts in messages.items()}
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank:
        return None

    # One node: T = α₀ + 2 (N-1) α₁ + 2 (N-1)/N n / β₁. α₀ and α₁ cannot be told apart, so α₀ = 0.
    short, *_, long = (measured[f"{size:,} bytes"] for size in sizes)
    bandwidth = 2 * (world - 1) / world * (sizes[-1] - sizes[0]) / (long - short)
    latency = short / (2 * (world - 1))
    network = Network(world, bandwidth, bandwidth, (Protocol(0.0, latency, latency, 1.0),))
    rows = [
        {
            "message": name,
            "bytes": sum(parts),
            "measured_s": measured[name],
            "model_s": sum(network.all_reduce(part, world)[0] for part in parts),
        }
        for name, parts in messages.items()
    ]
    print(f"{world} processes, {options.backend}: α = {1e6 * latency:.1f} µs a hop, β = {bandwidth / 1e9:.2f} GB/s")
    print(f"fitted to {sizes[0]} and {sizes[-1]:,} bytes; the others are predictions\n")
    print(f"{'message':<36} {'measured ms':>12} {'model ms':>10} {'model ÷ measured':>17}")
    for row in rows:
        print(
            f"{row['message']:<36} {1e3 * row['measured_s']:>12.3f} {1e3 * row['model_s']:>10.3f} "
            f"{row['model_s'] / row['measured_s']:>17.2f}"
        )
    return {"world": world, "backend": options.backend, "latency_s": latency, "bandwidth": bandwidth, "rows": rows}


def report(options: argparse.Namespace) -> dict:
    protocols = zip(options.start, options.intra_latency, options.inter_latency, options.protocol_share, strict=True)
    network = Network(
        options.node,
        1e9 * options.intra_bandwidth * options.bandwidth_share,
        1e9 * options.inter_bandwidth * options.bandwidth_share,
        tuple(Protocol(1e-6 * start, 1e-6 * intra, 1e-6 * inter, share) for start, intra, inter, share in protocols),
    )
    print(
        f"{options.node} GPUs a node; β = {options.intra_bandwidth:g} GB/s inside, {options.inter_bandwidth:g} GB/s "
        f"a GPU between nodes; α₀ = {options.start} µs,\nα = {options.intra_latency} µs inside, "
        f"{options.inter_latency} µs between, by protocol, with {options.protocol_share} of β\n"
        f"assumed: {options.bandwidth_share:.0%} of β; half-saturation at {options.half_saturation:g} images; "
        f"{options.backward:.0%} of compute is backward\n"
        "exposed: of the gradient's all-reduce; CLARS: its vector; other: optimizer step, trainer's check, BatchNorm"
    )
    tables = []
    for model in models(options):
        print(
            f"\n{model.name}: {model.parameters:,} parameters, K = {model.layers}; assumed: {model.rate:g} images/s "
            f"a GPU at large micro-batches, exact norms {model.norm_cost:g} ×"
        )
        for batch in options.batch_sizes:
            rows = [step(model, network, batch, gpus, options) for gpus in options.gpus]
            print(f"\nB = {batch:,}, {IMAGES // batch} steps an epoch, {options.epochs} epochs\n{HEAD}")
            print("\n".join(map(line, rows)))
            end = stops(model, network, batch, options)
            print(f"scaling stops: {end}")
            tables.append({"model": model.name, "batch": batch, "rows": rows, "stops": end})
    return {"options": vars(options), "tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), help="timm models")
    add("--batch_sizes", nargs="+", type=int, default=[16384, 32768, 65536])
    add("--gpus", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    add("--micro_batch", type=int, default=256, help="largest micro-batch of a GPU, as in recipes/imagenet")
    add("--epochs", type=int, default=90)
    add("--parameters", type=int, help="instead of the model's")
    add("--layers", type=int, help="K, instead of the model's")
    add("--rate", type=float, help="images/s of one GPU at large micro-batches, instead of the assumed ones")
    add("--norm_cost", type=float, help="time with exact norms ÷ without, instead of the README's")
    add("--half_saturation", type=float, default=16.0, help="micro-batch with half that rate (assumption)")
    add("--backward", type=float, default=2 / 3, help="share of compute that is the backward pass (assumption)")
    add("--decode_rate", type=float, help="images/s decoded for each GPU; without it the input never waits")
    add("--memory_bandwidth", type=float, default=3350.0, help="GB/s (NVIDIA: H100 SXM)")
    add("--node", type=int, default=8, help="GPUs in a node")
    lists: dict = {"nargs": "+", "type": float}
    add("--intra_bandwidth", type=float, default=450.0, help="GB/s of a GPU, one way (NVIDIA: NVLink 4, 900 both ways)")
    add("--inter_bandwidth", type=float, default=50.0, help="GB/s of a GPU, one way (NVIDIA: a 400 Gb/s card for each)")
    add("--bandwidth_share", type=float, default=0.8, help="of the bandwidths that all-reduce reaches (assumption)")
    add(
        "--intra_latency", **lists, default=[0.6, 1.25], help="µs a hop, by protocol (NCCL: NVLink, tree, LL and LL128)"
    )
    add("--inter_latency", **lists, default=[5.0, 8.5], help="µs a hop, by protocol (NCCL: network, tree)")
    add("--protocol_share", **lists, default=[0.25, 0.92], help="of the bandwidth, by protocol (NCCL)")
    add("--start", **lists, default=[20.0, 27.0], help="µs, by protocol: NCCL's 7 and 14, the rest launch (assumption)")
    add("--bucket", type=float, default=25.0, help="MiB of DDP's buckets")
    add("--stop", type=float, default=0.5, help="efficiency under which scaling has stopped")
    add("--measure", action="store_true", help="under torchrun: measure all-reduces beside the model")
    add("--backend", choices=["gloo", "nccl"], default="gloo", help="of --measure")
    add("--json", help="write the numbers there")
    options = parser.parse_args()
    if min(*options.batch_sizes, *options.gpus, options.micro_batch, options.node, options.epochs) < 1:
        parser.error("--batch_sizes, --gpus, --micro_batch, --node and --epochs must be at least 1")
    if len({len(options.start), *map(len, (options.intra_latency, options.inter_latency, options.protocol_share))}) > 1:
        parser.error("--start, --intra_latency, --inter_latency and --protocol_share have one value for each protocol")
    if options.measure and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        parser.error("--measure compares processes: start it with torchrun --nproc_per_node 2")

    numbers = measure(options) if options.measure else report(options)
    if options.json and numbers is not None:
        with open(options.json, "w") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
