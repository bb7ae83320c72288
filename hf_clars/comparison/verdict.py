"""The answer in words: which group is first, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .question import UNITS, target_text
from .runs import AXES
from .statistics import LEVEL, Interval
from .summaries import Comparison, Difference, GroupSummary, distance, ranked
from .words import interval_numbers, number, spread

_PAIRS_ALIKE = (
    5  # so many differences of one sign come by chance in 1 of 16 cases; what is measured in steps may be equal
)


def verdict(comparison: Comparison) -> list[str]:
    """Sentences; the first says who is first, the second how sure that is."""
    question, groups = comparison.question, comparison.groups
    leader = groups[0]
    if leader.means.get("final") is None:
        return ["No run has finished: there is nothing to compare yet."]
    deciding = comparison.deciding
    sentences = [_first(comparison, leader)]
    rivals = [group for group in groups[1:] if deciding in group.means]
    if rivals:
        (found,) = [d for d in comparison.differences_in(deciding) if d.group == rivals[0].name]
        sentences.append(_certainty(comparison, found, rivals[0], leader))
    elif len(groups) > 1:
        sentences.append(f"No other group {'reached it' if deciding in AXES else 'has a finished run'}.")
    if faster := [g for g in rivals if deciding in AXES and g.means[deciding].mean < leader.means[deciding].mean]:
        sentences.append(
            f"{_listed(faster)} took less where the target was reached, but did not reach it in every run: "
            f"{', '.join(f'{g.reached} of {g.tried}' for g in faster)}."
        )
    if deciding in AXES:
        for axis in comparison.axes:
            other = ranked(groups, question, axis)[0]
            if axis != deciding and axis in other.means and other is not leader:
                sentences.append(f"By {UNITS[axis]} {other.name} is first: {_amount(spread(other.means[axis]), axis)}.")
        by_value = ranked([g for g in groups if "final" in g.means], question, "final")[0]
        if by_value is not leader:
            sentences.append(f"The best last value is that of {by_value.name}: {spread(by_value.means['final'])}.")
    if diverged := [g for g in groups if g.count("diverged")]:
        counts = [f"{group.count('diverged')} of {len(group.runs)} of {group.name}" for group in diverged[:5]]
        more = f" and runs of {len(diverged) - 5} more groups" if len(diverged) > 5 else ""
        sentences.append(f"Diverged: {', '.join(counts)}{more}.")
    return sentences


def _first(comparison: Comparison, leader: GroupSummary) -> str:
    question, deciding = comparison.question, comparison.deciding
    mean = leader.means[deciding]
    if len(comparison.groups) == 1:
        if deciding in AXES:
            after = f"after {_amount(spread(mean), deciding)}, in {leader.reached} of {leader.tried} runs"
            return f"{question.metric} {target_text(question)} is reached {after}."
        return f"{question.metric} at the end: {spread(mean)} ({runs_text(mean.n)})."
    if deciding in AXES:
        after = f"after {_amount(spread(mean), deciding)}, in {leader.reached} of {leader.tried} runs"
        alike = [g for g in comparison.groups if _does_as(leader, g, deciding)]
        if len(alike) > 1:
            return f"{_listed(alike)} reach {question.metric} {target_text(question)} first, and alike: {after}."
        return f"{leader.name} reaches {question.metric} {target_text(question)} first: {after}."
    extreme = "lowest" if question.lower_is_better else "highest"
    return f"{leader.name} has the {extreme} {question.metric} at the end: {spread(mean)} ({runs_text(mean.n)})."


def _does_as(leader: GroupSummary, group: GroupSummary, deciding: str) -> bool:
    """As large a share of the runs reached the target, in the same mean."""
    share = group.reached * leader.tried == leader.reached * group.tried
    return share and deciding in group.means and math.isclose(group.means[deciding].mean, leader.means[deciding].mean)


def _certainty(comparison: Comparison, found: Difference, rival: GroupSummary, leader: GroupSummary) -> str:
    deciding, interval = comparison.deciding, found.interval
    size = interval_numbers(interval)[0].lstrip("+-")
    if deciding in AXES:
        beginning = f"{rival.name}, the second, needs {_amount(size, deciding)} {_more(interval, 'more', 'less')}"
    else:
        beginning = f"{rival.name}, the second, ends {size} {_more(interval, 'higher', 'lower')}"
    if interval.difference == 0:
        beginning = f"{rival.name}, the second, does the same on average"
    if interval.low is None or interval.high is None:
        return f"{beginning}; there is no interval, for which each needs two seeds: that may be chance."
    beginning += f" ({_bounds(interval)})"
    if not interval.clear:
        return f"{beginning}: 0 is inside the interval, so these runs do not tell the two apart."
    steps = [d for group in (rival, leader) if (d := distance(group, deciding)) is not None] if deciding in AXES else []
    if steps and abs(interval.difference) <= max(steps) * (1 + 1e-9):
        return f"{beginning}: no more than lies between two measurements ({number(max(steps))}), so do not build on it."
    if interval.low == interval.high and (interval.pairs or 0) < _PAIRS_ALIKE:
        return f"{beginning}: too few to tell how much seeds differ."
    return f"{beginning}: 0 is outside the interval, so the difference is more than seeds explain."


def _amount(text: str, axis: str) -> str:
    """`4.4 ± 0.5 epochs`, `1 epoch`."""
    return f"{text} {UNITS[axis].removesuffix('s') if text == '1' else UNITS[axis]}"


def _more(interval: Interval, more: str, less: str) -> str:
    return more if interval.difference >= 0 else less


def _bounds(interval: Interval) -> str:
    """`95 % interval of the difference +0.9 to +2.1, 3 seed pairs`."""
    of = "Welch: the seeds do not pair" if interval.pairs is None else f"{interval.pairs} seed pairs"
    if interval.low == interval.high:
        return f"the same in all {of}" if interval.pairs else "no spread at all"
    _, low, high = interval_numbers(interval)
    return f"{LEVEL * 100:g} % interval of the difference {low} to {high}, {of}"


def runs_text(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def _listed(groups: Sequence[GroupSummary]) -> str:
    return ", ".join(group.name for group in groups)
