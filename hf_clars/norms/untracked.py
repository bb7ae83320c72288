"""Which parameters cannot be measured, why, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..runtime import users_line
from .tracked import TrackedParameter

UNTRACKED = ("stand_in", "error")


def check_untracked(value: str) -> None:
    """Raises `UserError` for what `PerSampleNorms(untracked=...)` does not take."""
    if value not in UNTRACKED:
        raise UserError(f"untracked={value!r} is unknown; {did_you_mean(value, UNTRACKED)}")


class Untracked:
    """Names what cannot be measured; warns of it once, or ends the training.

    Args:
        action: `PerSampleNorms(untracked=...)`.
        warn: warns of newly found ones, by their reasons.

    Attributes:
        reasons: parameter name → why it cannot be measured.
    """

    def __init__(self, action: str, warn: Callable[[dict[str, str]], None]) -> None:
        check_untracked(action)
        self.action = action
        self._warn = warn
        self.reasons: dict[str, str] = {}
        self._unwarned: dict[str, str] = {}
        self._matrices: list[str] = []

    def clear(self) -> None:
        self.reasons, self._unwarned, self._matrices = {}, {}, []

    def exclude(self, parameters: Iterable[TrackedParameter], reason: str) -> None:
        """Part of the gradient of these cannot be measured, so none of what was measured counts."""
        parameters = list(parameters)
        for tracked in parameters:
            tracked.excluded = True
        self.name({tracked.name: tracked.parameter for tracked in parameters}, reason)
        if not torch.compiler.is_compiling() and users_line.is_under_way():  # else whoever asks next is told
            self.warn_of_new()

    def name(self, parameters: Mapping[str, Tensor], reason: str) -> None:
        for name, parameter in parameters.items():
            if name not in self.reasons:
                self.reasons[name] = self._unwarned[name] = reason
                if parameter.ndim >= 2:
                    self._matrices.append(name)

    def warn_of_new(self) -> None:
        """Warn of those that were named since the last warning, unless they end the training."""
        if not self._unwarned or self.action == "error":
            return
        reasons, self._unwarned = self._unwarned, {}
        self._warn(reasons)

    def refuse(self) -> None:
        """Raises `UserError` if one of two or more dimensions was named, and such end the training."""
        if self.action == "error" and self._matrices:
            reasons = {name: self.reasons[name] for name in self._matrices}
            raise UserError(
                f"PerSampleNorms cannot measure {len(reasons)} parameter(s), and untracked='error' ends the training: "
                f"{listed(reasons)}; untracked='stand_in' trains on"
            )


def listed(reasons: Mapping[str, str]) -> str:
    """The first of them, for a message."""
    some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    return some + (f"; and {len(reasons) - 3} more, see .untracked" if len(reasons) > 3 else "")
