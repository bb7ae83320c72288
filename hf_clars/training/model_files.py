"""The model of a checkpoint, written and read so that every tensor comes back, or an error names what does not."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..processes import once
from . import checkpoints
from .resuming import same_randomness_afterwards

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

_NAMED = 8  # keys of each kind that a message has


class ModelFiles(_Base):
    """A mix-in for `Trainer`, which loads what it finds, with a warning for the rest.

    - transformers saves some architectures under the names and in the parts that their files on the Hub have (ViT's
      layers, a mixture's experts), and Trainer loads by the model's own names, so these tensors keep their random
      values. A checkpoint has the model's own names here, with which `from_pretrained` can deal as well; what
      `save_model` writes has those of the Hub. A checkpoint with the Hub's names is converted as it is loaded.
    - Tensors that share memory (tied weights) in models that are not transformers' are saved once, and are tied again
      as far as the model ties them.
    - Any other difference between the names in a checkpoint and in the model is an error.
    """

    _staging: Path | None
    _loading: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PreTrainedModel):
            with _own_names(model, self._staging is not None):
                super()._save(output_dir, state_dict)
        elif hasattr(model, "save_pretrained"):  # PEFT's, whose adapters are saved alone
            super()._save(output_dir, state_dict)
        else:
            ours = self.model.state_dict() if state_dict is None and self.args.should_save else state_dict
            super()._save(output_dir, None if ours is None else stored_once(ours))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._loads(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not best.is_dir():  # of a folder that was moved since
            best = Path(str(self.args.output_dir)) / best.name
            self.state.best_model_checkpoint = str(best)
        trouble = once(lambda: checkpoints.what_is_wrong(best) if best.is_dir() else "no such folder")
        if trouble not in (None, checkpoints.MODEL_ALONE):
            raise UserError(
                f"load_best_model_at_end: {best} cannot be used ({trouble}); the last step's checkpoint has the model "
                "as it was trained"
            )
        with self._loads(best):
            super()._load_best_model()

    @contextmanager
    def _loads(self, checkpoint: Path) -> Iterator[None]:
        self._loading = checkpoint
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")  # of PEFT
                yield
        except UserWarning as error:
            raise UserError(f"{checkpoint} is of another model: {error}") from error
        finally:
            self._loading = None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        model = self.model
        assert isinstance(model, nn.Module)
        missing, unexpected = _differences(model, load_result.missing_keys, load_result.unexpected_keys)
        if (missing or unexpected) and isinstance(model, PreTrainedModel) and self._loading is not None:
            missing, unexpected = _load_converted(model, self._loading)
        if missing or unexpected:
            raise UserError(
                f"{self._loading} is of another model:"
                + (f" it lacks {_listed(missing)}" if missing else "")
                + (" and" if missing and unexpected else "")
                + (f" it has {_listed(unexpected)}, which the model has not" if unexpected else "")
            )


@contextmanager
def _own_names(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """`model.save_pretrained` writes the model as it is, and not as the files on the Hub are, if that is `wanted`."""
    if not wanted:
        yield
        return
    before = vars(model).get("save_pretrained")
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del model.save_pretrained
        else:
            model.save_pretrained = before


def stored_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors can store: no tensor that another one contains, and each contiguous in memory of its own.

    Raises:
        ValueError: something is not a tensor, such as the extra state of a module.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the model has no tensor but {type(tensor).__name__} as {name}, which is not stored")
    largest_first = sorted(state, key=lambda name: (-state[name].untyped_storage().nbytes(), -state[name].numel(), name))
    kept: dict[str, Tensor] = {}
    neighbours: dict[Any, list[_Memory]] = {}
    for name in largest_first:
        memory = _Memory.of(state[name])
        others = neighbours.setdefault(memory.storage, [])
        if not any(other.contains(memory) for other in others):
            kept[name] = state[name]
            others.append(memory)
    return {
        name: kept[name].clone() if len(neighbours[_Memory.of(kept[name]).storage]) > 1 else kept[name].contiguous()
        for name in state
        if name in kept
    }


class _Memory(NamedTuple):
    """Where a tensor's values are."""

    storage: Any
    start: int
    end: int
    layout: Any

    @classmethod
    def of(cls, tensor: Tensor) -> _Memory:
        start = tensor.data_ptr()
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        end = start + (extent * tensor.element_size() if tensor.numel() else 0)
        whole = extent == tensor.numel()
        layout = "whole" if whole else (tensor.shape, tensor.stride(), tensor.dtype)
        # A tensor without values is nobody's part.
        storage = (tensor.device, tensor.untyped_storage().data_ptr()) if tensor.numel() else object()
        return cls(storage, start, end, layout)

    def contains(self, other: _Memory) -> bool:
        """Whether all of the other's values are among these."""
        if self.storage != other.storage:
            return False
        return self == other or (self.layout == "whole" and self.start <= other.start and other.end <= self.end)


def _differences(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that matter: a tensor that has been loaded under another name, or as a part of another, is not missing."""
    absent = set(missing)
    if not absent:
        return [], sorted(unexpected)
    state = model.state_dict()
    loaded = [_Memory.of(tensor) for name, tensor in state.items() if name not in absent]
    absent -= set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    restored = {n for n in absent & state.keys() if any(other.contains(_Memory.of(state[n])) for other in loaded)}
    return sorted(absent - restored), sorted(unexpected)


def _load_converted(model: PreTrainedModel, checkpoint: Path) -> tuple[list[str], list[str]]:
    """Load a checkpoint through `from_pretrained`, which knows the names of the Hub; returns what does not fit."""
    dtype = functools.reduce(torch.promote_types, {p.dtype for p in model.parameters()})  # loses no bit
    with same_randomness_afterwards():
        loaded, told = type(model).from_pretrained(
            checkpoint, config=copy.deepcopy(model.config), dtype=dtype, output_loading_info=True, local_files_only=True
        )
    missing, unexpected = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if not missing and not unexpected:
        result = model.load_state_dict(loaded.state_dict(), strict=False)
        missing, unexpected = _differences(model, result.missing_keys, result.unexpected_keys)
    return missing, unexpected


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
