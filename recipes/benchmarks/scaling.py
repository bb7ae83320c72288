"""A model of one optimizer step on many GPUs: how long it computes, how long it waits, and where scaling stops.

    python recipes/benchmarks/scaling.py [--models resnet50] [--gpus 8 64 256 1024] [--batch_sizes 16384 65536]
    torchrun --nproc_per_node 2 recipes/benchmarks/scaling.py --measure

The second checks the part of the model that one machine can check: it measures all-reduces between processes (gloo, or
NCCL with --backend nccl), fits α and β to the smallest and the largest message, and prints what the model then says of
those between, of the model's gradient and of CLARS's vector, beside what was measured.

The formulas and their symbols stand in scaling_model.py.

Defaults are vendors' figures (DGX H100, a 400 Gb/s card for each GPU; NCCL's tables), counts, or assumptions, and what
is assumed is printed as such.
"""

import argparse
import json
import os
import statistics
import sys
import time

from scaling_model import IMAGES, MIB, Model, Network, Protocol, buckets, step, stops

# parameters, tensors of ≥ 2 dimensions, float32 numbers in buffers: counted by timm 1.0, for where it is missing;
# images/s of one GPU at large micro-batches: assumption, bf16 and channels_last on an H100;
# time with exact norms ÷ without: README, every sample, 224 px, on a CPU; on a GPU an assumption.
MODELS = {
    "resnet50": (25_557_032, 54, 53_120, 2500.0, 1.03),
    "densenet121": (7_978_856, 121, 83_648, 1300.0, 1.03),
    "mobilenetv2_100": (3_504_872, 53, 34_112, 3500.0, 1.09),
}


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
