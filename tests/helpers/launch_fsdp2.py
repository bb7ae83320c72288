"""Three steps of CLARS on two FSDP2 shards with accumulation; rank 0 saves the weights."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_clars import CLARS, PerSampleNorms
from tests.helpers.models import Classifier, dataset


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    examples = dataset(16)
    return torch.stack([e["pixel_values"] for e in examples]), torch.tensor([e["labels"] for e in examples])


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, micro_batches: int, sharded: bool) -> None:
    optimizer = CLARS(model.parameters(), 3.0, weight_decay=1e-3, norms=PerSampleNorms(model))
    for _ in range(3):
        parts = list(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True))
        for i, (part, target) in enumerate(parts):
            if sharded:
                model.set_requires_gradient_sync(i == len(parts) - 1)
            (F.cross_entropy(model(part)["logits"], target) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def sharded(rank: int, file: str) -> None:
    torch.manual_seed(1)
    model = Classifier()
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model.conv, model.head, model):
        fully_shard(layer, mesh=mesh)
    x, y = batch()
    train(model, x.chunk(world)[rank], y.chunk(world)[rank], 2, True)
    weights = {name: p.full_tensor() for name, p in model.named_parameters()}
    if rank == 0:
        torch.save(weights, file)
