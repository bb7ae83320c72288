"""Where samples come in: the arguments of a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import UserError
from ..runtime import users_line
from .between import place_by_graph
from .measurement import Measurement
from .recorder import Recorder
from .sample_axis.axis import Assumption, Lost, Place, SampleAxis
from .sample_axis.tags import PLACE, Bearers, place_of, tensors_in
from .tracked import is_tracked


class Inputs:
    """Finds the batch among the arguments of each outermost call, and tags the tensors that hold it.

    Args:
        dim: the dimension of the arguments in which samples stand; None for the first, unless arguments leave a doubt.
        size: the number of samples, where the arguments do not tell; None takes it from the first tensor with more than
            one row, of which there must be no doubt.
        bearers: of where samples stand.
    """

    def __init__(self, dim: int | None, size: int | None, bearers: Bearers) -> None:
        self.dim, self.size, self.bearers = dim or 0, size, bearers
        self.is_told = dim is not None or size is not None
        self._warned = False
        self._assumptions: list[Assumption] = []  # of this pass, about arguments that may be something else
        self._last: list[tuple[weakref.ref[Tensor], int, Assumption | None]] = []  # of the last pass, with versions

    def samples(self, tensors: list[Tensor], unbatched: bool) -> int | None:
        """The number of samples in new inputs; None where no argument has any."""
        return 1 if unbatched and self.size is None else self._number(self._candidates(tensors))

    def _candidates(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t for t in tensors if t.ndim > self.dim and not is_tracked(t)]

    def begin(self, tensors: list[Tensor], unbatched: bool) -> int | None:
        """A pass over new inputs begins; returns as `samples`."""
        candidates = self._candidates(tensors)
        if not torch.compiler.is_compiling():
            self.bearers.forget()
        if unbatched and self.size is None:
            self.bearers.place(candidates[0], SampleAxis(0, candidates[0].shape[0], 1))
            return 1
        batch = self._number(candidates)
        self._assumptions = [] if torch.compiler.is_compiling() else self._of_constants(candidates)
        self._tag_all(candidates, batch, known=False)
        return batch

    def _of_constants(self, tensors: list[Tensor]) -> list[Assumption]:
        """Refute what the last pass assumed of arguments that are there again, beside other samples."""
        last, self._last = self._last, []
        again = {(id(tensor), _version(tensor)) for tensor in tensors}
        there = [(id(ref()), version) in again for ref, version, _ in last]
        if True not in there or there[0]:
            return []
        found = [each for (_, _, each), is_there in zip(last, there, strict=True) if is_there and each is not None]
        found = [each for each in found if not each.confirmed]
        for each in found:
            each.refuted = True
        return found

    def _tag_all(self, tensors: list[Tensor], batch: int | None, known: bool) -> None:
        for tensor in list(dict.fromkeys(tensors)):  # ids may be the labels, too
            if batch is None or tensor.ndim <= self.dim or tensor.shape[self.dim] != batch:
                if hasattr(tensor, PLACE):
                    setattr(tensor, PLACE, None)
                continue
            # Another argument with as many rows may be something else: a mask over as many positions.
            assumed: tuple[Assumption, ...] = ()
            if known and batch > 1:
                assumed = (Assumption(likely=True),)
                self._assumptions += assumed
            if not torch.compiler.is_compiling():
                self._last.append((weakref.ref(tensor), _version(tensor), assumed[0] if assumed else None))
            self.bearers.place(tensor, SampleAxis(self.dim, 1, max(1, batch), assumed))
            known = True

    def leave(self, measurement: Measurement) -> None:
        """The outermost call is over: name the parameters of assumptions that fail."""
        reason = "it sees an argument with as many rows as the batch, which turned out not to be the samples'"
        measurement.exclude_failed(self._assumptions, reason)

    def _number(self, tensors: list[Tensor]) -> int | None:
        sizes = [t.shape[self.dim] for t in tensors]
        if self.size is not None:
            if sizes and self.size not in sizes:
                raise UserError(
                    f"batch_size={self.size}, but no argument of the forward pass has so many rows: they have "
                    f"{', '.join(map(str, sizes))} in dimension {self.dim}"
                )
            return self.size
        if not sizes:
            return None
        larger = [size for size in sizes if size > 1]
        if not larger:
            return sizes[0]
        taken = larger[0] if sizes[0] == 1 else sizes[0]
        # One number for each row may be for each class, as how frequent they are.
        numbers = not self.is_told and tensors[0].ndim == 1 and tensors[0].is_floating_point()
        doubt = sizes[0] == 1 or (numbers and True in [size != taken for size in larger])
        if doubt and not self._warned and not torch.compiler.is_compiling():
            self._warned = True
            users_line.warn(
                f"the arguments of the forward pass have {', '.join(map(str, sizes))} rows; PerSampleNorms takes "
                f"{taken} for the number of samples: set batch_size if it is another"
            )
        return taken

    def carried(self, tensors: list[Tensor], recorder: Recorder, whole: bool) -> list[Place]:
        """Where samples stand in those that results of a watched call are, or have a part in; none if all are new
        inputs. Tags them.

        Args:
            recorder: for which calls are watched.
            whole: the whole model is called, so tags that others left do not count.
        """
        places: list[Place] = []
        # In a backward pass checkpointing calls again what it called before, with copies of what it gave it.
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        for tensor in tensors:
            if not tensor.requires_grad or tensor.is_leaf or is_tracked(tensor):
                continue
            place = None if whole else place_of(tensor)
            if place is None and not torch.compiler.is_compiling():
                place = None if again else place_by_graph(tensor, recorder)
            elif place is None and not whole:
                place = Lost("its input was computed before a call that is compiled alone")
            if place is not None:
                self.bearers.place(tensor, place)
                places.append(place)
        return places

    def go_on(self, tensors: list[Tensor], carried: list[Place], batch: int | None) -> int | None:
        """The pass goes on with these, of which some carry samples already; the number of its samples."""
        for place in carried:
            if type(place) is SampleAxis:
                batch = place.batch if place.pick is None else place.pick.source.batch
                break
        new = [t for t in tensors if (not t.requires_grad or t.is_leaf) and not is_tracked(t)]
        self._tag_all(new, batch, known=True)
        return batch


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def why_untold(args: tuple[Any, ...], keywords: Mapping[str, Any], is_told: bool) -> str | None:
    """Why the arguments of a call do not tell which part of them is which sample's; None where they do.

    Args:
        is_told: whether somebody said how to read them.
    """
    if not torch.compiler.is_compiling() and is_packed(keywords):
        return "sequences are packed into one row, in which samples are not told apart"
    first = next((value for value in (*args, *keywords.values()) if tensors_in((value,))), None)
    if True in [t.requires_grad and not t.is_leaf for t in tensors_in((first,))]:
        return None  # of what an earlier call returned it is known
    if True in [t.is_nested for t in tensors_in((*args, *keywords.values()))]:
        return "a nested tensor is among the arguments, in which samples are not told apart: pad it"
    if isinstance(first, PackedSequence):
        return "sequences are packed into a PackedSequence, in which samples are not told apart: pad them"
    if not is_told and _are_apart(first):
        return (
            "several tensors of a kind are its first argument, and may be as many samples: if each holds all samples, "
            "PerSampleNorms(batch_dim=0) says so"
        )
    return None


def _are_apart(held: Any) -> bool:
    """Whether this holds tensors that may be a sample each.

    Entries of a mapping have names, and are taken for that only if they differ in the number of their rows.
    """
    if isinstance(held, Mapping):
        tensors = [t for t in tensors_in(held.values()) if t.is_floating_point()]
        several = len({t.ndim for t in tensors}) == 1 and len({t.shape[:1] for t in tensors}) > 1
        return several or True in [_are_apart(value) for value in held.values()]
    tensors = tensors_in(held) if type(held) in (list, tuple) else []
    return len(tensors) > 1 and len({(t.ndim, t.dtype) for t in tensors}) == 1


def is_packed(keywords: Mapping[str, Any]) -> bool:
    """Whether the one row of a call holds several sequences, as padding-free batches of transformers and TRL do.

    Their bounds say so, or positions that begin anew where no mask says that they are padding.
    """
    bounds, positions = keywords.get("cu_seq_lens_q"), keywords.get("position_ids")
    if isinstance(bounds, Tensor):
        return bounds.numel() > 2
    if not isinstance(positions, Tensor) or positions.ndim != 2 or positions.shape[0] != 1:
        return False
    return keywords.get("attention_mask") is None and bool((positions.diff() < 0).any())
