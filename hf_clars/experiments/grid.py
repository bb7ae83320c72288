"""One run of a grid, what makes it the same as another, and its flags."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..configuration import with_numbers
from ..runtime.provenance import HOUSEKEEPING


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        place: axis → value: where in the grid it is.
        settings: keys of the recipe, as in its YAML files.
    """

    place: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that change with any setting that changes what is computed.

        The data set counts under the name that the settings have for it, wherever `--data_dir` finds it.
        """
        given = {k: v for k, v in self.settings.items() if k not in HOUSEKEEPING and v is not None}
        given["dataset"] = str(given.get("dataset", "")).rstrip("/")
        computed = json.loads(json.dumps(with_numbers(given), default=str), parse_int=float)  # 1, 1.0 and 1e0 are one
        if self.settings.get("gradient_variance", "none") != "none":
            computed["per_device_eval_batch_size"] = self.settings.get("per_device_eval_batch_size")
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """For people: `resnet56_cifar lars B=8192 seed=0`."""
        return " ".join(v if isinstance(v, str) else f"{k}={v}" for k, v in self.place.items())

    @property
    def file_name(self) -> str:
        words = re.sub(r"[^\w.=-]+", "-", self.title.replace(" ", "_"))
        return f"{words[:120]}-{self.key}"

    def flags(self) -> list[str]:
        """The settings as command-line flags of the recipe."""
        given = {key: value for key, value in self.settings.items() if value is not None}
        return [text for key, value in given.items() for text in (f"--{key}", *_words(value))]


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [json.dumps(with_numbers(value))]
    if isinstance(value, list):
        return list(map(str, value))
    return [str(value).lower() if isinstance(value, bool) else str(value)]
