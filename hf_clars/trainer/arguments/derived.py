"""Values among the arguments that follow from others, and follow anew when those are set again."""

from __future__ import annotations

import math
from typing import Any

from yaml.representer import SafeRepresenter

from ...data.steps import accumulation_steps
from ...errors import UserError
from ...starting_rate import BASE_BATCH_SIZE, BASE_LEARNING_RATE

_FOLLOWERS = {
    "total_batch_size": ("gradient_accumulation_steps",),
    "gradient_accumulation_steps": ("total_batch_size",),
    "base_learning_rate": ("learning_rate",),
    "base_batch_size": ("learning_rate",),
}


class _Derived:
    """Marked as not given. A copy is marked, too; what is computed with it, or cast to its type, is a plain value."""

    def __reduce__(self) -> Any:
        return derived, (plain(self),)


class _DerivedInt(_Derived, int):
    def __new__(cls, value: Any) -> Any:
        return int(value)


class _DerivedFloat(_Derived, float):
    def __new__(cls, value: Any) -> Any:
        return float(value)


class _DerivedDict(_Derived, dict[str, Any]):
    pass


for _kind in (_DerivedInt, _DerivedFloat, _DerivedDict):
    SafeRepresenter.add_representer(_kind, lambda dumper, value: dumper.represent_data(plain(value)))


def derived(value: Any) -> Any:
    """The value, marked."""
    if isinstance(value, dict):
        return _DerivedDict(value)
    return int.__new__(_DerivedInt, value) if isinstance(value, int) else float.__new__(_DerivedFloat, value)


def given(value: Any) -> Any:
    """The value, if somebody gave it; None for a marked one."""
    return None if isinstance(value, _Derived) else value


def plain(value: Any) -> Any:
    """The value without a mark: what goes into a file that others read."""
    kinds: tuple[Any, ...] = (int, float, dict)
    return next(k(value) for k in kinds if isinstance(value, k)) if isinstance(value, _Derived) else value


class FollowingNumbers:
    """A mix-in for `TrainingArguments`: B, the accumulation and the learning rate, of which some follow from others."""

    total_batch_size: int | None
    gradient_accumulation_steps: int
    train_batch_size: int
    world_size: int
    learning_rate: float | None
    base_learning_rate: float | None
    base_batch_size: int | None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_is_complete" not in self.__dict__ or given(value) is None:
            return
        for other in _FOLLOWERS.get(name, ()):  # from what is set last
            super().__setattr__(other, derived(getattr(self, other)))
        if name == "learning_rate":
            super().__setattr__("base_learning_rate", None)
            super().__setattr__("base_batch_size", None)

    def settle(self) -> None:
        """Let what was not given follow from what was set since: B or the accumulation, and the learning rate.

        `ClarsTrainer` does it when it is made, when a training begins and in each trial of a search.

        Raises:
            UserError: batch sizes that do not divide, or scaling by what is not above 0.
        """
        if given(self.total_batch_size) is None:
            samples = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.total_batch_size = derived(samples)
        else:
            self.gradient_accumulation_steps = derived(self.accumulation_of(self.train_batch_size))
        if given(self.learning_rate) is None:
            self.learning_rate = derived(self._starting_rate())

    def accumulation_of(self, batch_size: int) -> int:
        """How many micro-batches of so many samples a device are a step.

        Raises:
            UserError: they do not divide B.
        """
        assert self.total_batch_size is not None
        return accumulation_steps(self.total_batch_size, batch_size, self.world_size)

    def _check_accumulation(self) -> None:
        if self.total_batch_size is None:
            return
        steps = self.accumulation_of(self.train_batch_size)
        if given(self.gradient_accumulation_steps) not in (None, 1, steps):
            raise UserError(
                f"total_batch_size={self.total_batch_size} needs {steps} accumulation steps of "
                f"{self.train_batch_size} × {self.world_size} samples, but gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: leave that out"
            )

    def _starting_rate(self) -> float:
        """The learning rate where none is given."""
        return self._scaled_learning_rate()

    def _scaled_learning_rate(self) -> float:
        values = []
        for name, default in (("base_learning_rate", BASE_LEARNING_RATE), ("base_batch_size", BASE_BATCH_SIZE)):
            value = default if getattr(self, name) is None else getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name}={value!r} must be a finite number > 0, unless learning_rate is given")
            values.append(value)
        assert self.total_batch_size is not None
        return values[0] * self.total_batch_size / values[1]
