"""YAML by strangers: refused in a line, in bounded time and memory."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_clars.errors import UserError
from hf_clars.safety.yaml_files import parse_yaml, read_yaml

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {b: 1, c: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ALIASES, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        ("[" * 3000 + "]" * 3000, "nested more than 40 deep"),
        ("{" * 5000, "nested more than 40 deep"),
        ("- " * 3000, "nested more than 40 deep"),
        ("".join(" " * i + "a:\n" for i in range(500)), "nested more than 40 deep"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {b: *a}", "holds itself"),
        ("? &a [*a]\n: 1", "holds itself"),
        ("a: 1\nb: 2\n'a': 3", "'a' stands twice"),
        ("a: {b: 1, b: 1}", "'b' stands twice"),
        ("#" * 300_000, "longer than 200,000"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("!!int 1:30", "'1:30' is no number"),
        ("a: 0x_", "no int"),
        ("!!int ''", "no int"),
        ("!!bool maybe", "no bool"),
        ("!!timestamp 2025-01-02", r"a kind that settings do not have \(timestamp\)"),
        ("!!set {a}", r"a kind that settings do not have \(set\)"),
        ("!!binary aGk=", r"a kind that settings do not have \(binary\)"),
        ("!!python/object/apply:os.system [id]", r"a kind that settings do not have \(os.system\)"),
        ("? [a]\n: b", "unhashable key"),
        ("a: b\n---\nc: d", "expected a single document"),
        ("\x00", "unacceptable character"),
        ("*a", "undefined alias"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    """None of them is ever done: what is read without bounds does not come to an end here."""
    with pytest.raises(yaml.YAMLError, match=why):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["1:30", "1:30.5", "010", "0b11", "2025-01-02", "2025-02-30", "1:" * 3000 + "1"])
def test_what_yaml_1_1_makes_numbers_and_dates_of_is_text(text: str) -> None:
    assert parse_yaml(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: *x", "a: 1\nb: {a: 1}", "[1, 1.5, true, null, text]", "a: 1e-3"],
)
def test_what_is_taken_is_pyyamls(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)


def test_our_own_files_are_taken() -> None:
    files = [*Path(__file__).parents[1].glob("recipes/**/*.yaml")]
    assert len(files) > 10
    for file in files:
        assert read_yaml(file, file.name) == yaml.safe_load(file.read_text())


class Words(yaml.SafeLoader):
    """PyYAML's, to which numbers and dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, word) for tag, word in known if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def same(found: Any, words: Any) -> bool:
    """But for numbers, which are what Python makes of their text."""
    if isinstance(words, dict) and isinstance(found, dict):
        return same([*found, *found.values()], [*words, *words.values()])
    if isinstance(words, list | tuple) and type(found) is type(words):
        return len(found) == len(words) and all(map(same, found, words))
    if isinstance(words, str) and type(found) in (int, float):
        return int(words, 0) == found if "x" in words else repr(type(found)(words)) == repr(found)
    return found == words and type(found) is type(words)


@given(st.text(alphabet="a1:-[]{}&*<>!?|'\"#%@,. \n\t0xe~=", max_size=60))
def test_one_kind_of_error(text: str) -> None:
    try:
        expected = yaml.load(text, Words)
    except Exception:  # PyYAML's own are of many kinds
        with pytest.raises(yaml.YAMLError):
            parse_yaml(text)
        return
    try:
        found = parse_yaml(text)
    except yaml.YAMLError as error:
        found, why = None, str(error)
        expected = None if "stands twice" in why or "holds itself" in why else expected
    assert same(found, expected), (found, expected)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin, binary, long, pipe = (tmp_path / name for name in ("latin", "binary", "long", "pipe"))
    latin.write_bytes("a: \u00e9".encode("latin-1"))
    binary.write_bytes(bytes(range(256)))
    with long.open("wb") as file:
        file.truncate(2**40)  # sparse: a tebibyte of zeros
    os.mkfifo(pipe)
    for file, why in (
        (latin, "is not YAML"), (binary, "is not YAML"), (long, "is not YAML"), (pipe, "no such file"),
        (Path("/dev/zero"), "no such file"), (tmp_path, "no such file"), (tmp_path / "none", "no such file"),
        (tmp_path / ("n" * 300), "(cannot be read|no such file)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^--config x.*{why}") as refused:
            read_yaml(file, "--config x")
        assert "\n" not in str(refused.value)
