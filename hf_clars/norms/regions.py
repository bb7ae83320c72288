"""Activation checkpointing runs a function twice: what is known in the first run must be known in the second.

A *region* is one call of a checkpointed function. Without `use_reentrant`, its second run must save the very tensors
that the first one saved, in their order. With it, the second run is the one that is differentiated, on tensors cut off
from all others. Either begins in the middle of a backward pass, outside the model's forward, and its tensors bear no
tags. So what a module is given in the first run is written down, and known again in the second.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .sample_axis.tags import tags_of, tensors_in
from .tracked import CUT, LOOKUP, PARAMETER, PARAMETERS

_FIRST = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_SECOND = torch.utils.checkpoint.CheckpointFunction.backward.__code__


@dataclass(frozen=True, eq=False)
class Region:
    """A region that is being run.

    Args:
        key: an object of torch's that both runs have; private names, test_norms_checkpointing.py fails if they go.
        run: None in the first run, else a number that tells one second run from another (`retain_graph=True`).
        reentrant: as in `torch.utils.checkpoint.checkpoint`.
    """

    key: Any
    run: Any
    reentrant: bool


@dataclass(frozen=True, eq=False)
class Given:
    """What a module was given: the batch size, and the tags of each tensor among its arguments."""

    module: weakref.ref[nn.Module]
    batch: int | None
    tags: list[dict[str, Any]]


class Regions:
    """What was given, in the first run of each region that may still be run again, to the modules that it calls."""

    def __init__(self) -> None:
        self.watched: CodeType | None = None  # of what runs a watched forward
        self.current: Region | None = None  # that of the innermost watched forward
        self._given: weakref.WeakKeyDictionary[Any, list[Given]] = weakref.WeakKeyDictionary()
        self._calls: weakref.WeakKeyDictionary[Any, tuple[Any, int]] = weakref.WeakKeyDictionary()

    def repeats(self) -> bool:
        """Whether a region is in its second run, which knows from the first what it is given."""
        return self.current is not None and self.current.run is not None

    def entered(self, may_be_reentrant: bool) -> Region | None:
        """The region in which a watched forward, whose code calls this, is the outermost one; None if in no such."""
        region = _by_hooks()
        if may_be_reentrant and (region is None or self._is_current(region)):
            region = _by_stack(sys._getframe(2), self.watched) or region
        return None if region is None or self._is_current(region) else region

    def is_unwatched(self) -> bool:
        """Whether the innermost region is in no watched forward, so that nobody looks at what it calls the second time.
        Of reentrant ones `is_unwatched_reentrant` tells."""
        region = _by_hooks()
        return region is not None and not self._is_current(region)

    def is_unwatched_reentrant(self) -> bool:
        """Whether the innermost function that reentrant checkpointing will call again is not a module's forward."""
        region = _by_stack(sys._getframe(1), self.watched)
        return region is not None and not self._is_current(region)

    def must_repeat(self) -> bool:
        """Whether the same tensors must be saved once more, so that nothing may depend on what else is under way."""
        return self.current is not None and not self.current.reentrant

    def kept(self) -> AbstractContextManager[Any]:
        """In here, what is saved for the backward pass is kept, not computed again.

        The graph from parameters to a tensor computed from them alone is walked for each of its uses, under vmap. It
        would run its whole region again each time, and vmap refuses to draw random numbers.
        """
        return saved_tensors_hooks(_same, _same) if self.must_repeat() else nullcontext()

    def note(self, region: Region, module: nn.Module, batch: int | None, given: Any) -> None:
        """The region's first run gives this to a module."""
        # A second run that is reentrant has tensors of its own, not computed from any others.
        left_out = (PARAMETER, PARAMETERS, LOOKUP, CUT) if region.reentrant else (PARAMETER,)
        tags = [{name: value for name, value in tags_of(t).items() if name not in left_out} for t in tensors_in(given)]
        self._given.setdefault(region.key, []).append(Given(weakref.ref(module), batch, tags))

    def given(self, region: Region, module: nn.Module, given: Any) -> Given | None:
        """What it was the first time, with the tags set again; None where nobody watched that."""
        run, calls = self._calls.get(region.key, (region.run, 0))
        calls = calls if run == region.run else 0
        self._calls[region.key] = region.run, calls + 1
        noted, tensors = self._given.get(region.key, ()), tensors_in(given)
        if calls >= len(noted) or noted[calls].module() is not module or len(noted[calls].tags) != len(tensors):
            return None
        for tensor, tags in zip(tensors, noted[calls].tags, strict=True):
            for name in tags_of(tensor).keys() - tags.keys() - {PARAMETER}:
                delattr(tensor, name)
            for name, value in tags.items():
                setattr(tensor, name, value)
        return noted[calls]

    def _is_current(self, region: Region) -> bool:
        return self.current is not None and self.current.key is region.key


def _same(tensor: Tensor) -> Tensor:
    return tensor


@torch.compiler.disable
def _by_hooks() -> Region | None:
    """By the hooks on saved tensors, where the innermost ones are checkpointing's."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__module__", "") != torch.utils.checkpoint.__name__:
        return None
    pack = inspect.unwrap(hooks[0])
    known = {name: cell.cell_contents for name, cell in zip(pack.__code__.co_freevars, pack.__closure__, strict=True)}
    if "frame" in known:
        return Region(known["frame"], None, False)
    return Region(known["target_frame_ref"](), known["gid"], False)


def _by_stack(frame: FrameType | None, watched: CodeType | None) -> Region | None:
    """By who calls whom, up to the innermost watched forward: reentrant checkpointing sets no hooks."""
    while frame is not None and (frame.f_code is not watched):
        if frame.f_code is _FIRST:
            return Region(frame.f_locals["ctx"], None, True)
        if frame.f_code is _SECOND:
            return Region(frame.f_locals["ctx"], torch._C._current_graph_task_id(), True)
        frame = frame.f_back
    return None
