"""A model of one optimizer step on many GPUs: how long it computes, how long it waits, and where scaling stops.

    python recipes/benchmarks/scaling.py [--models resnet50] [--gpus 8 64 256 1024] [--batch_sizes 16384 65536]
    torchrun --nproc_per_node 2 recipes/benchmarks/scaling.py --measure

The second checks what one machine can check: it measures all-reduces between processes (gloo, or NCCL with --backend
nccl), fits α and β to the smallest and the largest message, and says what the model then makes of the others.

The formulas and their symbols stand in scaling_model.py.

Defaults are vendors' figures (DGX H100, a 400 Gb/s card for each GPU; NCCL's tables), counts, or assumptions.
"""

import argparse
import os
import statistics
import time

import command_line
import timm
import torch
import torch.distributed as dist
from scaling_model import IMAGES, MIB, Model, Network, buckets, step, stops

from hf_clars.errors import UserError

# images/s of one GPU at large micro-batches: assumption, bf16 and channels_last on an H100;
# time with exact norms ÷ without: docs/results/cost.md, every sample, 224 px, on a CPU; on a GPU an assumption.
RATES = {"resnet50": (2500.0, 1.03), "densenet121": (1300.0, 1.03), "mobilenetv2_100": (3500.0, 1.09)}
# NCCL's tables for LL and LL128: seconds to start (7 and 14 µs, the rest is the launch's, an assumption), of a hop
# over NVLink and over the network, and the share of the bandwidth.
PROTOCOLS = [(20e-6, 0.6e-6, 5e-6, 0.25), (27e-6, 1.25e-6, 8.5e-6, 0.92)]


def model_of(name: str, options: argparse.Namespace) -> Model:
    with torch.device("meta"):
        network = timm.create_model(name)
    parameters = list(network.parameters())
    floats = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    rate, norm_cost = RATES.get(name, (2000.0, 1.05))
    counts = sum(p.numel() for p in parameters), sum(p.ndim >= 2 for p in parameters), floats
    return Model(name, *counts, options.rate or rate, options.norm_cost or norm_cost)


def report(options: argparse.Namespace) -> dict:
    network = Network(
        options.node,
        1e9 * options.intra_bandwidth * options.bandwidth_share,
        1e9 * options.inter_bandwidth * options.bandwidth_share,
        PROTOCOLS,
    )
    tables = []
    for model in (model_of(name, options) for name in options.models):
        print(
            f"\n{model.name}: {model.parameters:,} parameters, K = {model.layers}; assumed: {model.rate:g} images/s "
            f"a GPU at large micro-batches, exact norms {model.norm_cost:g} ×"
        )
        for batch in options.batch_sizes:
            rows = [step(model, network, batch, gpus, options) for gpus in options.gpus]
            end = stops(model, network, batch, options)
            title = f"B = {batch:,}, {IMAGES // batch} steps an epoch, {options.epochs} epochs"
            command_line.show(f"{title}; efficiency under {options.stop:.0%} from {end or 'no'} GPUs on", rows)
            tables.append({"model": model.name, "batch": batch, "rows": rows, "stops": end})
    return {"tables": tables}


def measure(options: argparse.Namespace) -> dict:
    """All-reduces of this group of processes against the model with α and β fitted to two of them."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if options.backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(options.backend)

    def seconds(size: int) -> float:
        """Median over rounds of the slowest process's time."""
        data, times = torch.zeros(max(size // 4, 1), device=device), []
        for _ in range(3 + max(9, min(200, int(100e6 / size)))):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(data)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        slowest = torch.tensor(times[3:], dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return statistics.median(slowest.tolist())

    sizes = [64, 4096, 65536, MIB, 4 * MIB, 16 * MIB, 64 * MIB]
    messages = {f"{size:,} bytes": [size] for size in sizes}
    for model in (model_of(name, options) for name in options.models):
        parts = buckets(4 * model.parameters, options.bucket * MIB)
        messages[f"{model.name}: CLARS's vector"] = [8 * model.layers]
        messages[f"{model.name}: gradient, {len(parts)} buckets"] = [int(part) for part in parts]
    measured = {name: sum(map(seconds, parts)) for name, parts in messages.items()}
    world, rank = dist.get_world_size(), dist.get_rank()
    dist.destroy_process_group()
    if rank:
        raise SystemExit  # one process reports

    # One node: T = α₀ + 2 (N-1) α₁ + 2 (N-1)/N n / β₁. α₀ and α₁ cannot be told apart, so α₀ = 0.
    short, long = (measured[f"{size:,} bytes"] for size in (sizes[0], sizes[-1]))
    bandwidth = 2 * (world - 1) / world * (sizes[-1] - sizes[0]) / (long - short)
    latency = short / (2 * (world - 1))
    network = Network(world, bandwidth, bandwidth, [(0.0, latency, latency, 1.0)])
    table = [
        {
            "message": name,
            "measured_ms": 1e3 * took,
            "model_ms": 1e3 * sum(network.all_reduce(part, world) for part in messages[name]),
        }
        for name, took in measured.items()
    ]
    fit = f"α = {1e6 * latency:.1f} µs a hop, β = {bandwidth / 1e9:.2f} GB/s"
    command_line.show(
        f"{world} processes, {options.backend}: {fit}; fitted to {sizes[0]} and {sizes[-1]:,} bytes", table
    )
    return {"latency_s": latency, "bandwidth": bandwidth, "rows": table}


def main() -> None:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--models", nargs="+", type=command_line.timm_model, default=list(RATES))
    add("--batch_sizes", nargs="+", type=count, default=[16384, 32768, 65536])
    add("--gpus", nargs="+", type=count, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    add("--micro_batch", type=count, default=256, help="largest micro-batch of a GPU, as in recipes/imagenet")
    add("--epochs", type=count, default=90)
    add("--rate", type=float, help="images/s of one GPU at large micro-batches, instead of the assumed ones")
    add("--norm_cost", type=float, help="time with exact norms ÷ without, instead of that of docs/results/cost.md")
    add("--half_saturation", type=float, default=16.0, help="micro-batch with half that rate (assumption)")
    add("--backward", type=float, default=2 / 3, help="share of compute that is the backward pass (assumption)")
    add("--decode_rate", type=float, help="images/s decoded for each GPU; without it the input never waits")
    add("--memory_bandwidth", type=float, default=3350.0, help="GB/s (NVIDIA: H100 SXM)")
    add("--node", type=count, default=8, help="GPUs in a node")
    add("--intra_bandwidth", type=float, default=450.0, help="GB/s of a GPU, one way (NVIDIA: NVLink 4, 900 both ways)")
    add("--inter_bandwidth", type=float, default=50.0, help="GB/s of a GPU, one way (NVIDIA: a 400 Gb/s card for each)")
    add("--bandwidth_share", type=float, default=0.8, help="of the bandwidths that all-reduce reaches (assumption)")
    add("--bucket", type=float, default=25.0, help="MiB of DDP's buckets")
    add("--stop", type=float, default=0.5, help="efficiency under which scaling has stopped")
    add("--measure", action="store_true", help="under torchrun: measure all-reduces beside the model")
    add("--backend", choices=["gloo", "nccl"], default="gloo", help="of --measure")
    add("--json", type=command_line.file, default="scaling.json")
    options = parser.parse_args()
    if options.measure and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UserError("--measure compares processes: start it with torchrun --nproc_per_node 2")
    about = command_line.about(options, "timm") if os.environ.get("RANK", "0") == "0" else {}
    numbers = measure(options) if options.measure else report(options)
    command_line.write(options.json, {**about, **numbers})


if __name__ == "__main__":
    command_line.run(main)
