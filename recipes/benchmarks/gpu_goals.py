"""What was to be reached on a GPU, and what the files of the measurements say."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_runs import NO_TIME, Ended

TIME, MEMORY, STEP = 1.10, 1.10, 1.05


@dataclass(frozen=True)
class Finding:
    """A figure and its goal.

    Args:
        run: whose figure.
        what: it is.
        measured: as text.
        goal: the largest ratio that will do; None where none was set.
        value: the ratio; None where there is none.
    """

    run: str
    what: str
    measured: str
    goal: float | None = None
    value: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None or self.value is None:
            return ""
        return "ok" if self.value <= self.goal else "missed"


def findings(ended: Sequence[Ended], out: Path) -> list[Finding]:
    """Of the files that these runs left, if cut off, too; not of what another commit or size left there."""
    found: list[Finding] = []
    for end in ended:
        if end.status == NO_TIME:
            continue
        kind = next((k for k in _READERS if end.name == k or end.name.startswith(f"{k}-")), None)
        if end.name.startswith("tests-"):
            found += _of_tests(end, out)
        elif kind is not None:
            path = out / end.name / "roofline.json" if kind == "roofline" else out / f"{end.name}.json"
            try:
                result = json.loads(path.read_text())
                if all(
                    result.get(key, of_it) == of_it for key, of_it in (("commit", end.commit), ("command", end.command))
                ):
                    found += _READERS[kind](end.name, result)
            except (OSError, ValueError, KeyError):  # none, or not whole
                continue
    return found


def _of_norms(run: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    compiled = ", compiled" if result["options"]["compile"] else ""
    for model, of in result["models"].items():
        rows = [row for row in of["rows"] if row["batch_norm"] != "frozen"] or of["rows"]
        for row in rows:
            what = f"{row['label']}: {model}{compiled}"
            ours = row["method"] == "per_sample"
            if row["method"] == "plain":
                if "in_a_row_seconds" in row:
                    ms = statistics.median(row["in_a_row_seconds"]) * 1e3
                    yield Finding(run, what, f"{ms:.2f} ms, {row['samples_per_second']:.0f} samples/s")
                continue
            for key, label, goal in (
                ("in_a_row", "time, steps in a row", TIME),
                ("time", "time, steps waited for", TIME),
                ("memory", "memory", MEMORY),
            ):
                if key in row:
                    yield Finding(run, f"{what}, {label}", f"{row[key]:.3f} ×", goal if ours else None, row[key])
        for method, reason in of["notes"].items():
            yield Finding(run, f"{method}: {model}{compiled}", f"did not run: {reason}")


def _of_step(run: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    for table in result["tables"]:
        for row in table["rows"]:
            if row["optimizer"] in ("hf_clars CLARS", "hf_clars LARS"):
                what = f"{row['optimizer'].split()[1]}.step() against SGD fused: {table['model']}"
                goal = STEP if row["optimizer"] == "hf_clars CLARS" else None
                yield Finding(run, what, f"{row['to_fused']:.3f} × ({row['ms']:.2f} ms)", goal, row["to_fused"])


def _of_no_wait(run: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    for key, what in (("sync", "no wait for the device in a step"), ("graph", "step() in a CUDA graph")):
        if result["options"]["device"] == "cpu":
            yield Finding(run, what, f"{result[key]}, on a CPU, where it shows nothing")
        else:
            yield Finding(run, what, result[key], 0.0, 0.0 if result[key] == "ok" else 1.0)


def _of_roofline(run: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    for model, of in result["models"].items():
        plain, norms = of["whole"]["plain"], of["whole"]["norms"]
        ratio = norms["seconds"] / plain["seconds"]
        floor = of["total"]["plain"]["roofline_seconds"] * 1e3
        compiled = ", compiled" if result["options"]["compile"] else ""
        measured = f"{ratio:.3f} × ({plain['seconds'] * 1e3:.2f} ms plain, {floor:.2f} ms at the roofline)"
        yield Finding(run, f"CLARS with norms against SGD, whole step: {model}{compiled}", measured, TIME, ratio)


def _of_large_step(run: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    size = f"B = {result['options']['total_batch_size']}, {result['options']['image_size']} px"
    for row in result["rows"]:
        peak = "" if row["peak_mib"] is None else f", {row['peak_mib']:.0f} MiB"
        measured = f"{row['median_seconds']:.2f} s, {row['images_per_second']:.0f} images/s{peak}, {row['ratio']:.3f} ×"
        goal = TIME if row["optim"] == "clars" else None
        yield Finding(run, f"one optimizer step of {row['optim']}, {size}", measured, goal, row["ratio"])


def _of_tests(end: Ended, out: Path) -> Iterator[Finding]:
    try:
        log = (out / f"{end.name}.log").read_text(errors="replace")
    except OSError:
        return
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", log)
    yield Finding(
        end.name,
        f"{end.name.removeprefix('tests-')}: tests",
        ", ".join(counts) or end.status,
        0.0,
        0.0 if end.ran else 1.0,
    )


_READERS = {
    "norms": _of_norms,
    "compiled": _of_norms,
    "peers": _of_norms,
    "step": _of_step,
    "no-wait": _of_no_wait,
    "roofline": _of_roofline,
    "large-step": _of_large_step,
}


def markdown(ended: Sequence[Ended], found: Sequence[Finding], about: Mapping[str, Any]) -> str:
    hardware = about["hardware"]
    lines = [f"`{about['command']}`, commit {about['commit']}, {hardware['device']}, torch {hardware['torch']}", ""]
    lines += ["| what | goal | measured | |", "|---|---|---|---|"]
    for f in found:
        goal = "" if not f.goal else f"≤ {f.goal:.2f} ×"
        lines.append(f"| {_cell(f.what)} | {goal} | {_cell(f.measured)} | {f.verdict} |")
    lines += ["", "| run | ended | s | reason |", "|---|---|---|---|"]
    lines += [f"| {e.name} | {e.status} | {e.seconds:.0f} | {_cell(e.reason)} |" for e in ended]
    ran = sum(e.ran for e in ended)
    missed = [f for f in found if f.verdict == "missed"]
    lines += ["", f"{ran} of {len(ended)} ran; {len(missed)} goals missed."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
