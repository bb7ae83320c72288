"""What backward passes brought: noted first, and summed up for all parameters together.

In the mode `subset` some passes are not measured (`turns.py`). The notes of the last pass that was measured stand for
them, so the number of samples that a note stands for grows until it is summed up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .accumulator import Accumulator
from .gradient_life import GradientLife
from .tracked import TrackedParameter


class Notes:
    """Of one pass, or of several that have no parameter in common.

    Args:
        parameters, lives: all that are measured, in the order of their columns, and their gradients.

    Attributes:
        sums: of what was noted earlier; None before the first time.
        standing: squares of the last measured pass, which stand for the unmeasured ones after it.
    """

    def __init__(self, parameters: list[TrackedParameter], lives: list[GradientLife]) -> None:
        self.parameters, self.lives = parameters, lives
        self.sums: Accumulator | None = None
        self._noted: dict[TrackedParameter, tuple[Tensor, int]] = {}  # squares, of how many samples
        self._ended: dict[TrackedParameter, bool | Tensor] = {}  # not done yet: whether their gradient began anew
        self.standing: dict[TrackedParameter, Tensor] = {}
        self._more = 0  # samples of unmeasured passes, for which each note stands besides its own

    def __contains__(self, tracked: TrackedParameter) -> bool:
        return tracked in self._noted

    def add(self, tracked: TrackedParameter, squares: Tensor, batch: int, begins: bool | Tensor) -> None:
        """Note `‖c_i‖²` of some samples of a pass, which stand for its `batch` samples; nothing is noted of it yet.

        Args:
            begins: whether a new gradient begins with this pass.
        """
        self._noted[tracked] = squares, batch
        if begins is not False:
            self._ended[tracked] = begins
            if begins is True:
                self.lives[tracked.index].begun()

    # --- passes that are not measured --------------------------------------------------------------------------

    def may_stand(self, follows_gradient: bool) -> bool:
        """Whether there are notes that were not summed up, and nobody wrote to the gradients since.

        Args:
            follows_gradient: whether gradients are where we can look.
        """
        if not self._noted or not follows_gradient:
            return bool(self._noted)
        return all(self.lives[tracked.index].is_as_left() for tracked in self._noted)

    def let_stand(self) -> None:
        """What is noted now stands for the passes that come, until others are measured."""
        self.standing = {tracked: squares for tracked, (squares, _) in self._noted.items()}

    def stand_for(self, samples: int, follows_gradient: bool) -> bool:
        """Let the notes stand for these samples, too. False, and nothing happens, if they were summed up, or if the
        gradient was cleared or written to since."""
        if len(self._noted) != len(self.standing) or not self.may_stand(follows_gradient):
            return False
        self._more += samples
        return True

    # --- sums --------------------------------------------------------------------------------------------------

    # Whoever asks in inference mode, the sums are changed outside of it, too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def sum_up(self) -> bool:
        """Returns whether there was anything to sum up."""
        noted, self._noted = self._noted, {}
        ended, self._ended = self._ended, {}
        more, self._more = self._more, 0
        if self.sums is not None:
            surely = [tracked.index for tracked, flag in ended.items() if flag is True]
            if surely:
                self.sums.turn(surely)
            flagged = {tracked.index: flag for tracked, flag in ended.items() if isinstance(flag, Tensor)}
            if flagged:
                device = self.sums.current.device
                where = torch.stack([flag.to(device, non_blocking=True) for flag in flagged.values()])
                self.sums.turn(list(flagged), where)
        alike: dict[Any, list[TrackedParameter]] = {}
        for tracked, (squares, batch) in noted.items():
            alike.setdefault((squares.shape[0], squares.dtype, squares.device, batch), []).append(tracked)
        for (*_, batch), parameters in alike.items():
            squares = torch.stack([noted[tracked][0] for tracked in parameters])
            norms = self.sums_for(squares).add([tracked.index for tracked in parameters], squares, batch + more)
            for tracked, last in zip(parameters, norms.unbind(), strict=True):
                life = self.lives[tracked.index]
                life.last = last
                life.samples += more
        return bool(noted)

    def sums_for(self, like: Tensor) -> Accumulator:
        if self.sums is None:
            dtypes = {tracked.parameter.dtype.to_real() for tracked in self.parameters}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
            self.sums = Accumulator(len(self.parameters), dtype, like.device)
        return self.sums

    def forget(self) -> None:
        """Drop the notes and the sums. What stands for a pass whose backward pass is still to come stays."""
        self._noted, self._ended, self._more, self.sums = {}, {}, 0, None
