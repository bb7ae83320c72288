"""Which of several processes says what all of them have to say."""

from __future__ import annotations

import os
from datetime import timedelta


def first_to_say() -> bool:
    """Whether no other process of this launch has asked: a mistake that all of them meet is told once.

    The store of `accelerate launch` and `torchrun` is there before a process group is, and outlives every process.
    Where there is none (mpirun), the first process speaks.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return environment.get("RANK", "0") == "0"
    import torch.distributed as dist  # here alone: where there is one process, a line needs no torch

    address, port = environment.get("MASTER_ADDR", ""), int(environment.get("MASTER_PORT", "0"))
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        said = store.add(f"hf_clars/said/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1)
    except (dist.DistError, RuntimeError):  # the launch is being ended: it is over for a reason that was told
        return environment.get("RANK", "0") == "0"
    return said == 1
