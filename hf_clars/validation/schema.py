"""One schema for all settings: their type hints, with ranges, held against values by pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..errors import UserError, did_you_mean, one_line

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
Share = Annotated[float, Field(ge=0, le=1)]
PartOfOne = Annotated[float, Field(ge=0, lt=1)]
# What torch computes with is float32.
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Epochs = Annotated[float, Field(ge=0, le=1e9)]

_LONGEST = 100  # characters of a value in a message


def one_of(choices: Collection[str]) -> AfterValidator:
    """For `Annotated[str, one_of(…)]`: a word out of several; the message has the nearest one."""

    def known(word: str) -> str:
        if word not in choices:
            raise PydanticCustomError("one_of", "{text}", {"text": f"is unknown; {did_you_mean(word, choices)}"})
        return word

    return AfterValidator(known)


def setting(default: Any, meaning: str) -> Any:
    """A field of a dataclass of settings: its default, and what `--help` says of it."""
    return field(default=default, metadata={"help": meaning})


def check(settings: Any, narrower: Mapping[str, Any] | None = None) -> None:
    """Hold the fields of a dataclass against their types; each gets the value that its type makes of the one given.

    Args:
        settings: an instance.
        narrower: name → type, in place of type hints that are not ours to write.

    Raises:
        UserError: the first field that is wrong, its value, and what it must be.
    """
    given = {f.name: getattr(settings, f.name) for f in fields(settings) if f.init}
    schema = _schema(type(settings), tuple((narrower or {}).items()))  # type: ignore[arg-type]
    try:
        valid = schema.__pydantic_validator__.validate_python(given)
    except ValidationError as error:
        raise UserError(_line(error, given)) from None
    for name, value in given.items():
        typed = getattr(valid, name)
        # What has the type already stays itself: it may be of a class that knows more than the number.
        if not (isinstance(value, int | float | str | dict) and isinstance(value, type(typed)) and value == typed):
            setattr(settings, name, typed)


@cache
def _schema(kind: type, narrower: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    hints = {**get_type_hints(kind, include_extras=True), **dict(narrower)}
    config = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=())
    wanted: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(kind) if f.init}
    return create_model(kind.__name__, __config__=config, **wanted)


class Section(BaseModel):
    """A mapping of a file, in which every key is known unless `extra` says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        strict = isinstance(given, Mapping) and cls.model_config.get("extra") == "forbid"
        for key in map(str, given if strict else ()):
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {near[0]}?" if near else f"here are {', '.join(cls.model_fields)}"
                raise said(f"unknown key {key!r}; {hint}")
        return given


def read_as(kind: Any, value: Any, name: str) -> Any:
    """A value of a file, as a type wants it; raises `UserError` with what is wrong where, in `name`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ": ".join(filter(None, (name, ".".join(map(str, first["loc"])))))
        text = first["msg"].replace("Input should", "it must").partition(" or instance of ")[0]
        if first["type"] not in ("said", "missing"):
            text = (
                f"{first['input']!r:.40} {text}" if first["type"] == "one_of" else f"{text}, not {first['input']!r:.40}"
            )
        raise UserError(one_line(f"{where}: {text}")) from None


def said(text: str) -> PydanticCustomError:
    """For validators to raise: the whole of what is wrong, in our own words."""
    return PydanticCustomError("said", "{text}", {"text": text})


def _line(error: ValidationError, given: Mapping[str, Any]) -> str:
    """`eta=-1.0 must be greater than 0`; of a type with several parts, what each of them wants."""
    problems = error.errors(include_url=False, include_context=False)
    name = problems[0]["loc"][0]
    of_field = [p for p in problems if p["loc"][0] == name]
    unknown = [p for p in of_field if p["type"] == "one_of"]  # says more than what else it might have been
    text = (
        " or ".join(dict.fromkeys(p["msg"] for p in unknown or of_field))
        .replace("Input should", "must")
        .replace("or must be", "or")
    )
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    value = repr(given[str(name)])
    value = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    return one_line(f"{name}={value} {text}")
