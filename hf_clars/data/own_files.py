"""Tables whose rows name files: in their places, or refused."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from ..errors import UserError
from .home import ForeignFileError, Home

_ROWS = 10_000


def with_own_files(table: Dataset, home: Home, name: str) -> Dataset:
    """A table of raw images (`bytes`, `path`) whose relative paths are absolute; all that it names lies at home.

    Raises:
        UserError: a row names a file elsewhere.
    """
    relative = False
    try:
        for batch in table.select_columns(["image"]).with_format("arrow").iter(_ROWS):
            data, paths = (pc.struct_field(batch["image"], part) for part in ("bytes", "path"))
            for path in paths.filter(pc.and_(pc.is_null(data), pc.is_valid(paths))).to_pylist():
                home.place(path)
                relative |= _is_relative(path)
    except ForeignFileError as error:
        raise UserError(f"dataset {name!r}: a row names a file that is not its own: {error}") from None
    if not relative:
        return table

    def placed(image: dict[str, Any] | None) -> dict[str, Any]:
        if image is not None and image["bytes"] is None and image["path"] is not None and _is_relative(image["path"]):
            image = {"bytes": None, "path": home.place(image["path"])}
        return {"image": image}

    return table.map(placed, input_columns=["image"])


def _is_relative(path: str) -> bool:
    return not path.startswith("/") and "://" not in path
