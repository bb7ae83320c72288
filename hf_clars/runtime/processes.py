"""What the processes of a training tell each other, apart from gradients."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..errors import UserError

T = TypeVar("T")


def _lost_a_process(error: Exception) -> bool:
    """Whether a collective operation failed because a process is gone; gloo says so in plain RuntimeErrors."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    gloo = any(sign in str(error) for sign in ("gloo", "Connection closed by peer", "Connection reset by peer"))
    return isinstance(error, dist.DistError) or gloo


def what_was_lost(error: RuntimeError) -> str | None:
    """Which process is gone, where that is what the error is about. DataLoader may raise anywhere, from a signal."""
    if _lost_a_process(error):
        return "lost the connection to another process: it ended or was killed, and may have said why"
    message = str(error)
    if "DataLoader worker" not in message:
        return None
    how = message.partition(" killed by signal: ")[2].partition(".")[0] or "unexpectedly"
    return (
        f"a data worker ended ({how}): where memory ran out (a Bus error: /dev/shm), lower dataloader_num_workers or "
        "shuffle_buffer"
    )


def once(work: Callable[[], T]) -> T:
    """`work()` of the first process, on every process; so is its `UserError`. Collective."""
    state = PartialState()
    if state.num_processes == 1:
        return work()
    result: T | None = None
    error: UserError | None = None
    if state.is_main_process:
        try:
            result = work()
        except UserError as e:
            error = e
    outcome = broadcast_object_list([result, error])
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def first_to_say() -> bool:
    """Whether no other process of this launch has asked: a mistake that all of them meet is told once.

    The store of `accelerate launch` and `torchrun` is there before a process group is, and outlives every process.
    Where there is none (mpirun), the first process speaks.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return environment.get("RANK", "0") == "0"
    address, port = environment.get("MASTER_ADDR", ""), int(environment.get("MASTER_PORT", "0"))
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        said = store.add(f"hf_clars/said/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1)
    except (dist.DistError, RuntimeError):  # the launch is being ended: it is over for a reason that was told
        return environment.get("RANK", "0") == "0"
    return said == 1
