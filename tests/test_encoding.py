"""What is written is UTF-8 whatever the locale: no file is read or written as text without saying so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("hf_clars", "recipes", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))


def in_the_locales_encoding(source: str | bytes) -> Iterator[int]:
    """Lines of calls that read or write text and name no encoding."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and "encoding" not in {keyword.arg for keyword in call.keywords}:
            match ast.unparse(call.func).rpartition(".")[::2], [ast.unparse(word) for word in call.args]:
                case ((_, "read_text"), _) | ((_, "write_text"), [_, *_]) | (("", "open"), [_]):
                    yield call.lineno
                case (("", "open"), [_, mode, *_]) | ((_, "open"), [mode]) if mode in ("'r'", "'w'", "'a'", "'x'"):
                    yield call.lineno


@pytest.mark.parametrize("call", ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('a')"])
def test_the_check_sees(call):
    assert [*in_the_locales_encoding(call)] == [1]
    said = call.replace("()", "(encoding='utf-8')") if "()" in call else f"{call[:-1]}, encoding='utf-8')"
    assert [*in_the_locales_encoding(said)] == []


def test_text_is_utf_8_in_any_locale():
    found = {f"{path.relative_to(ROOT)}:{n}" for path in FILES for n in in_the_locales_encoding(path.read_bytes())}
    assert found == set()
