"""The model of a checkpoint, written and read so that every tensor comes back, or an error names what does not."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import is_peft_available

from ...errors import UserError
from ...norms.restored import randomness_restored
from ...runtime.processes import once
from ...safety.links import is_within, own_folders
from . import folders
from .model_tensors import differences, named, stored_once


class ModelFiles(Trainer):
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
    resumed_from: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PreTrainedModel):
            keywords: dict[str, Any] = (
                {"save_original_format": False} if self._staging is not None and _has_formats(model) else {}
            )
            with _exchanged(model, "save_pretrained", functools.partial(model.save_pretrained, **keywords)):
                super()._save(output_dir, state_dict)
        elif _is_peft(model):  # adapters alone are saved
            super()._save(output_dir, state_dict)
        else:
            if state_dict is None and self.args.should_save:
                state_dict = cast(nn.Module, self.model).state_dict()
            super()._save(output_dir, None if state_dict is None else stored_once(state_dict))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._loads(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        places = [Path(str(self.args.output_dir)), *([self.resumed_from.parent] if self.resumed_from else [])]
        own = [folder for place in places for folder in own_folders(place)]
        if not best.is_dir() or not is_within(best, own):  # of a folder that was moved since, or a stranger's word
            best = Path(str(self.args.output_dir)) / best.name
            self.state.best_model_checkpoint = str(best)
        trouble = once(lambda: folders.what_is_wrong(best) if best.is_dir() else "no such folder")
        if trouble not in (None, folders.MODEL_ALONE):
            raise UserError(
                f"load_best_model_at_end: {best} cannot be used ({trouble}); the last step's checkpoint has the model "
                "as it was trained"
            )
        with self._loads(best):
            super()._load_best_model()

    @contextmanager
    def _loads(self, checkpoint: Path) -> Iterator[None]:
        self._loading = checkpoint
        model = self.model
        try:
            if isinstance(model, nn.Module) and _is_peft(model):
                with _exchanged(model, "load_adapter", self._adapters_checked(model)):
                    yield
            else:
                yield
        finally:
            self._loading = None

    def _adapters_checked(self, model: Any) -> Any:
        """`load_adapter`, which returns the names that do not fit, to a Trainer that does not look at them."""
        load = model.load_adapter

        def checked(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            self._refuse(*differences(model, _adapters(result.missing_keys), _adapters(result.unexpected_keys)))
            return result

        return checked

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        model = self.model
        assert isinstance(model, nn.Module)
        missing, unexpected = differences(model, load_result.missing_keys, load_result.unexpected_keys)
        if (missing or unexpected) and isinstance(model, PreTrainedModel) and self._loading is not None:
            missing, unexpected = _load_converted(model, self._loading)
        self._refuse(missing, unexpected)

    def _refuse(self, missing: list[str], unexpected: list[str]) -> None:
        if missing or unexpected:
            raise UserError(f"{self._loading} is of another model: {named(missing, unexpected)}")


@contextmanager
def _exchanged(model: nn.Module, method: str, by: Any) -> Iterator[None]:
    """`model.method` is another while this lasts."""
    attributes = vars(model)
    before = attributes.get(method)
    attributes[method] = by
    try:
        yield
    finally:
        del attributes[method]
        if before is not None:
            attributes[method] = before


def _has_formats(model: PreTrainedModel) -> bool:
    """False where a class has a `save_pretrained` of its own, with fewer arguments."""
    parameters = inspect.signature(model.save_pretrained).parameters
    return "save_original_format" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _adapters(names: Iterable[str]) -> list[str]:
    """Without what PEFT computes from the rest, and does not save."""
    return [name for name in names if "prompt_encoder" not in name]


def _is_peft(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _load_converted(model: PreTrainedModel, checkpoint: Path) -> tuple[list[str], list[str]]:
    """Load a checkpoint through `from_pretrained`, which knows the names of the Hub; returns what does not fit."""
    dtype = functools.reduce(torch.promote_types, {p.dtype for p in model.parameters()})  # loses no bit
    with randomness_restored():
        result: Any = type(model).from_pretrained(
            checkpoint, config=copy.deepcopy(model.config), dtype=dtype, output_loading_info=True, local_files_only=True
        )
    loaded, told = result
    missing, unexpected = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if not missing and not unexpected:
        result = model.load_state_dict(loaded.state_dict(), strict=False)
        missing, unexpected = differences(model, result.missing_keys, result.unexpected_keys)
    return missing, unexpected
