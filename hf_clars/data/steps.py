"""How many micro-batches make one step."""

from __future__ import annotations

from ..errors import UserError


def accumulation_steps(total_batch_size: int, per_device_batch_size: int, world_size: int) -> int:
    """Micro-batches each process accumulates so that one step sees `total_batch_size` examples.

    Raises:
        UserError: a size below 1, or sizes that do not divide; the message names the nearest ones that do.
    """
    sizes = {
        "total_batch_size": total_batch_size,
        "per_device_train_batch_size": per_device_batch_size,
        "world_size": world_size,
    }
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size} must be at least 1")
    together = per_device_batch_size * world_size
    steps, rest = divmod(total_batch_size, together)
    if rest:
        totals = [n * together for n in (steps, steps + 1) if n]
        advice = f"total_batch_size {_either(totals)}"
        share, left_over = divmod(total_batch_size, world_size)
        if not left_over:
            advice += f", or per_device_train_batch_size {_either(_nearest_divisors(share, per_device_batch_size))}"
        raise UserError(
            f"total_batch_size={total_batch_size} is no multiple of "
            f"per_device_train_batch_size={per_device_batch_size} × {world_size} processes = {together}: use {advice}"
        )
    return steps


def nearest_batch_size(total_batch_size: int, at_most: int, world_size: int) -> int:
    """The largest per-device batch size up to `at_most` from which accumulation reaches `total_batch_size`."""
    return _nearest_divisors(total_batch_size // world_size, at_most)[0]


def _nearest_divisors(number: int, near: int) -> list[int]:
    """The largest divisor of `number` up to `near` and the smallest above it, where there is one."""
    below = next(n for n in range(min(near, number), 0, -1) if number % n == 0)
    above = next((n for n in range(near, number + 1) if number % n == 0), None)
    return [below] if above is None else [below, above]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
