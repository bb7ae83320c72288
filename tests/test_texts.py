"""Names by strangers on terminals, in Markdown and in spreadsheets."""

import csv
import io
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_clars.cli import main
from hf_clars.comparison import tables
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.runs import Question
from hf_clars.safety.texts import in_csv, in_markdown, plain_records, printable

from .helpers.comparison import run

EVIL = "a\x1b[31m\x07\x9b2J\u202eb<script>alert(1)</script>|[x](javascript:1)\r\n# $y$"


def controls(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202a\u202b\u202d\u202e"]


@given(st.text())
def test_nothing_printable_moves_the_cursor(text: str) -> None:
    assert controls(printable(text)) == []
    if text.isprintable():
        assert printable(text) == text


@pytest.mark.parametrize("name", ["γ_scale η=0.01", "日本語", "eval/accuracy", "a b.c-d", "Ünïcode ✓", "👩\u200d🔬"])
def test_names_keep_their_letters(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("[x](y)", r"\[x\](y)"),
        ("![x](y)", r"!\[x\](y)"),
        ("a_b*c`d", r"a_b\*c\`d"),
        ("__a__ _b_ c__d", r"\_\_a\_\_ \_b\_ c\_\_d"),
        ("# head", r"\# head"),
        ("1. one", r"1\. one"),
        ("- item", r"\- item"),
        ("> quote", r"\> quote"),
        ("=====", r"\====="),
        ("&lt;", "&amp;lt;"),
        ("see http://evil.example", r"see http\://evil.example"),
        ("a|b", r"a\|b"),
        ("$x$", r"\$x\$"),
        ("plain 0.5 ± 0.1, n=3", "plain 0.5 ± 0.1, n=3"),
    ],
)
def test_markdown_is_words(text: str, expected: str) -> None:
    assert in_markdown(text) == expected


@pytest.mark.parametrize(
    "cell", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "＠x", "-x", "+"]
)
def test_no_cell_is_a_formula(cell: str) -> None:
    assert str(in_csv(cell)).startswith("'")


@pytest.mark.parametrize("cell", ["clars", "-0.5", "+3", "-1e-5", "", "lr=1", "a-b", -0.5, None, 3, "1+1"])
def test_numbers_and_words_are_no_formulas(cell: object) -> None:
    assert in_csv(cell) == cell


def test_a_comparison_of_evil_names() -> None:
    names = [EVIL, f"={EVIL}", f"# {EVIL}"]
    runs = [run(name, seed, name=name, **{f"=key{EVIL}": name}) for name in names for seed in (0, 1)]
    comparison = analyse(runs, Question("eval/accuracy"), skipped=[f"{EVIL}: {EVIL}"])
    printed = io.StringIO()
    tables.print_comparison(comparison, printed)
    text = tables.document(comparison)
    for shown in (printed.getvalue(), text):
        assert set(controls(shown)) == {"\n"}
    assert "<script" not in text
    assert not [line for line in text.splitlines() if line.lstrip("- ").startswith("#")]
    assert "](" not in text.replace(r"\](", "")
    for content in (tables.groups_csv(comparison), tables.runs_csv(comparison)):
        cells = [cell for row in csv.reader(io.StringIO(content)) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "\t"))]
        assert set(controls(content)) == {"\n"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_comparison_of_evil_names_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    comparison = analyse([run(EVIL, seed, name=EVIL) for seed in (0, 1)], Question("eval/accuracy"), skipped=[EVIL])
    printed = Terminal()
    tables.print_comparison(comparison, printed)
    assert set(controls(printed.getvalue())) == {"\n"}


def test_what_a_command_says_of_evil_names_is_one_line(tmp_path, capsys) -> None:
    assert main(["plot", str(tmp_path / "a\x1b[31m\nb")]) == 2
    said = capsys.readouterr().err
    assert controls(said) == ["\n"]
    assert r"a\x1b[31m b" in said


def test_what_is_logged_of_evil_names_is_one_line(caplog) -> None:
    logger = logging.getLogger("hf_clars.tests.texts")
    logger.addFilter(plain_records)
    logger.warning("cannot read %s", EVIL)
    assert printable(EVIL) in caplog.text
    assert controls(caplog.text) == ["\n"]
