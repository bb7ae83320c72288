"""What gives access to something, kept out of everything that is written down for others to read."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_KEY = re.compile(
    r"(^|[_.-])(auth|authorization|bearer|credentials?|(api|access|private|secret|auth|account|ssh|wandb|hf)[_-]?key"
    r"|pass(word|wd|phrase)?|pwd|secrets?|sas|tokens?)$",
    re.IGNORECASE,
)
# Of vocabularies: `pad_token`, also in the config of a model.
_WORDS = re.compile(
    r"(^|_)(pad|bos|eos|unk|cls|sep|mask|image|video|audio|decoder_start|num|max|additional_special)_tokens?$"
)
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST = 8  # of a variable's value that is looked for in texts: `test` stands in many
_IN_TEXT = re.compile(
    r"(?P<user>(?<=://)[^/@\s'\"]+(?=@))"  # https://user:password@host
    r"|(?P<query>(?<=[?&;])(?:[\w-]*(?:token|key|sig|signature|credential|secret|password))=[^&;\s'\"]+)"
    r"|(?P<hub>\bhf_[A-Za-z0-9]{30,})|(?P<wandb>\bwandb_v\d+_[A-Za-z0-9_]{20,})",
    re.IGNORECASE,
)
_HIDDEN = "<hidden>"


def without_secrets(value: Any, key: str = "") -> Any:
    """The same with placeholders for secrets, at any depth.

    Secret is what a key says so of (`hub_token`, `api_key`, `password`), and in any text what is known as one: the
    tokens of this process' environment, user names and passwords in addresses, and what has the form of a token.
    """
    if isinstance(value, Mapping):
        shown = {k: without_secrets(v, str(k)) for k, v in value.items()}
        return value if shown == value else shown  # the mapping itself may say more than its contents
    if is_secret(key) and value not in (None, "", (), []) and not isinstance(value, bool | int | float):
        return f"<{key.upper()}>"
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(without_secrets(each) for each in value)
    return hidden_in(value) if isinstance(value, str) else value


def is_secret(key: str) -> bool:
    """Whether what is called so is one."""
    return _KEY.search(key) is not None and _WORDS.search(key) is None


def hidden_in(text: str) -> str:
    """A text with `<hidden>` in place of the secrets in it."""
    for name in _VARIABLES:
        known = os.environ.get(name, "")
        if len(known) >= _SHORTEST:
            text = text.replace(known, _HIDDEN)
    if text.startswith("{") and text.endswith("}"):  # a mapping on the command line
        try:
            return json.dumps(without_secrets(json.loads(text)))
        except (ValueError, RecursionError):
            pass  # no JSON: a text like others
    return _IN_TEXT.sub(
        lambda found: f"{found['query'].partition('=')[0]}={_HIDDEN}" if found["query"] else _HIDDEN, text
    )


def hidden_in_words(words: list[str]) -> list[str]:
    """A command line with placeholders: `--hub_token X`, `--hub-token=X`, addresses, mappings."""
    shown, secret = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.lstrip("-").replace("-", "_") if word.startswith("--") else ""
        if secret and not flag:
            shown.append(f"<{secret.upper()}>")
        elif flag and equals:
            shown.append(f"{name}={without_secrets(value, flag)}")
        else:
            shown.append(hidden_in(word))
        secret = flag if flag and not equals and is_secret(flag) else ""
    return shown


@contextmanager
def out_of_command_line() -> Iterator[None]:
    """While it lasts, `sys.argv` holds placeholders; for who writes it down."""
    before = sys.argv
    sys.argv = [*before[:1], *hidden_in_words(before[1:])]
    try:
        yield
    finally:
        sys.argv = before
