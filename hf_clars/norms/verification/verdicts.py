"""What `verify_norms` found: a verdict for each parameter, and the table that is printed."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Status = Literal["right", "named", "unused", "not checked", "wrong"]

_WIDTH = 120
_NAME = 56  # columns, for the longest
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")


@dataclass(frozen=True, eq=False)
class NormVerdict:
    """What was found of one parameter.

    Attributes:
        name: as in `model.named_parameters()`.
        status: `"right"`: every sample's norm agrees with the passes over single samples. `"named"`: it is not
            measured, and `.untracked` says why. `"unused"`: the loss does not depend on it. `"not checked"`: single
            samples do not tell what is right. `"wrong"`: it is measured, and the norms are false, or it is neither
            measured nor named.
        measured: `‖c_i‖` by `PerSampleNorms`, `[B]`, float64, on the CPU; None if it has none.
        expected: `‖c_i‖` by passes over single samples, `[B]`, alike; None if they do not tell.
        error: `max_i |measured_i − expected_i| / max_i expected_i`; None where either is missing.
        reason: why the status is not `"right"`, in words; empty where the numbers say it.
    """

    name: str
    status: Status
    measured: Tensor | None = None
    expected: Tensor | None = None
    error: float | None = None
    reason: str = ""

    def details(self) -> str:
        """The reason, and both numbers of the sample with the largest error if they differ."""
        if self.status != "wrong" or self.measured is None or self.expected is None:
            return self.reason
        numbers = f"Σ‖c_i‖ is {self.measured.sum():.4g}, by single samples {self.expected.sum():.4g}"
        if self.measured.shape == self.expected.shape:
            i = int((self.measured - self.expected).abs().argmax())
            numbers = f"‖c_{i}‖ is {self.measured[i]:.4g}, by sample {i} alone {self.expected[i]:.4g}; {numbers}"
        return f"{self.reason}: {numbers}" if self.reason else numbers


@dataclass(frozen=True, eq=False)
class NormsVerification:
    """What was found of a model on a batch. Its text is the table that `verify_norms` prints.

    Attributes:
        parameters: name → verdict, for every trainable parameter, in the model's order.
        batch_size: B.
        tolerance: the largest relative error that counts as rounding.
        notes: under which conditions it was checked, one line each.
    """

    parameters: dict[str, NormVerdict]
    batch_size: int
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every parameter is right, named or unused: nothing is wrong, and nothing is left unchecked."""
        return not self.with_status("wrong") and not self.with_status("not checked")

    @property
    def largest_error(self) -> float:
        """Of all parameters whose norms could be compared, relative; 0 where none could."""
        return max((v.error for v in self.parameters.values() if v.error is not None), default=0.0)

    def with_status(self, status: Status) -> list[str]:
        """Names of the parameters with this status."""
        return [name for name, verdict in self.parameters.items() if verdict.status == status]

    def __str__(self) -> str:
        names = {name: _shortened(_plain(name)) for name in self.parameters}
        width = max(map(len, names.values()), default=0)
        lines: list[str] = []
        said = ""
        for name, verdict in self.parameters.items():
            error = "" if verdict.error is None else f"{verdict.error:.1e}"
            head = f"{verdict.status:<11}  {names[name]:<{width}}  {error:>7}  "
            details = _plain(verdict.details())
            lines += _beside(head, "as above" if details and details == said else details)
            said = details
        lines += [line for note in self.notes for line in _beside("note: ", _plain(note))]
        count = Counter(verdict.status for verdict in self.parameters.values())
        statuses: tuple[Status, ...] = ("right", "named", "unused", "not checked", "wrong")
        found = ", ".join(f"{count[s]} {s}" for s in statuses if count[s] or s in ("right", "wrong"))
        all_ = "1 parameter" if len(self.parameters) == 1 else f"{len(self.parameters)} parameters"
        rounding = f"largest relative error {self.largest_error:.1e}, tolerance {self.tolerance:.0e}"
        lines += _beside("", f"{all_}: {found}; {rounding}, {self.batch_size} samples")
        return "\n".join(lines)


def _beside(head: str, text: str) -> list[str]:
    """Lines of at most 120 columns, the first of which begins with `head` and the others with as many blanks."""
    blank = " " * len(head)
    return [line.rstrip() for line in textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=blank)] or [
        head.rstrip()
    ]


def _plain(text: str) -> str:
    """Without what would act on a terminal: names and messages of errors are the user's."""
    return "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", text))


def _shortened(name: str) -> str:
    if len(name) <= _NAME:
        return name
    half = (_NAME - 1) // 2
    return f"{name[: _NAME - 1 - half]}…{name[-half:]}"
