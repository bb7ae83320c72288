"""Results as a Markdown table: a row for each group of runs that differ in their seed alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..texts import in_markdown
from .grid import Run
from .results import Result, grouped


def table(results: Sequence[tuple[Run, Result]]) -> str:
    """Accuracies as mean ± standard deviation over seeds."""
    axes = [axis for axis in results[0][0].place if axis != "seed"]
    head = [*axes, "seeds", "final test accuracy", "best", "training loss", "diverged", "s a run", "commit"]
    rows = [[*map(in_markdown, head)], ["---"] * len(head)]
    for place, group in grouped(results, *axes).items():
        seeds = [result for _, result in group]
        done = [result for result in seeds if result.state == "finished"]
        final = [100 * r.final.get("eval_accuracy", math.nan) for r in done]
        best = [100 * max(r.points("eval_accuracy")[1], default=math.nan) for r in done]
        losses = [r.points("loss")[1][-1] for r in done if r.points("loss")[1]]
        cells = [
            *(in_markdown(str(value)) for value in place),
            str(len(seeds)),
            mean_and_deviation(final, 1, " %"),
            mean_and_deviation(best, 1, " %"),
            mean_and_deviation(losses, 3),
            str(len(seeds) - len(done)),
            f"{statistics.mean(r.seconds for r in seeds):.0f}",
            in_markdown(", ".join(sorted({r.commit for r in seeds}))),
        ]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_and_deviation(values: Sequence[float], digits: int, unit: str = "") -> str:
    """`86.8 ± 0.2 %`, or without the deviation for a single value; `–` for none."""
    numbers = [statistics.mean(values)] if values else []
    numbers += [statistics.stdev(values)] if len(values) > 1 else []
    texts = [f"{n:.{digits}f}" if n < 1e6 else f"{n:.2g}" for n in numbers]  # a loss may grow without bound
    return " ± ".join(texts) + unit if texts else "–"
