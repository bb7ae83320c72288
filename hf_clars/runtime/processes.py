"""What the processes of a training tell each other, apart from gradients."""

from __future__ import annotations

from collections.abc import Callable
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
