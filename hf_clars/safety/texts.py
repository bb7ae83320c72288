"""Words that strangers chose (names of files, runs and settings) where people and programs read them."""

from __future__ import annotations

import logging
import re
import unicodedata

# Control characters; what turns the direction of text around, joins or ends lines; halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*{}\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
_MARKDOWN_LINE = re.compile(r"^(\d+)([.)])|^([#>+=-])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def printable(text: object) -> str:
    """On one line and without effect on a terminal: `\\x1b[31m` is written out."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def in_markdown(text: str) -> str:
    """What Markdown, HTML in it, or a formula renderer would take for more than words is written out."""
    text = _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text.replace("\n", " ")))
    text = _MARKDOWN_LINE.sub(lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def in_csv(value: object) -> object:
    """A spreadsheet reads what begins so as a formula: an apostrophe goes before it. Numbers are left alone."""
    if not isinstance(value, str):
        return value
    begin = unicodedata.normalize("NFKC", value.lstrip(" ")[:1])
    value = printable(value)
    return f"'{value}" if begin.startswith(_FORMULA) and not _is_number(value) else value


def plain_records(record: logging.LogRecord) -> bool:
    """A filter for loggers whose messages hold names by strangers."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII) is not None
