"""A comparison as Markdown: the verdict, the tables, what has to be known about them."""

from __future__ import annotations

from ..safety.texts import in_markdown
from .summaries import Comparison
from .tables import DIFFERENCES, differences, lines, markdown, table, title
from .verdict import verdict


def findings(comparison: Comparison) -> str:
    """The verdict, the table of groups, and that of differences if there are any."""
    parts = [
        *map(in_markdown, verdict(comparison)),
        f"{in_markdown(title(comparison))}\n\n{markdown(*table(comparison))}",
    ]
    head, rows = differences(comparison)
    if rows:
        parts.append(f"{DIFFERENCES}\n\n{markdown(head, rows)}")
    return "\n\n".join(parts)


def notes(comparison: Comparison) -> str:
    """A list; empty for none."""
    return "\n".join(f"- {in_markdown(line)}" for line in lines(comparison))


def document(comparison: Comparison) -> str:
    return "\n\n".join(filter(None, [findings(comparison), notes(comparison)])) + "\n"
