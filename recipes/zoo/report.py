"""What a survey has found, as text."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any


def verdict(result: dict[str, Any]) -> list[str]:
    """What is wrong with an architecture's numbers."""
    found = []
    if "crashed" in result:
        found.append(f"CRASHED: {result['crashed']}")
    if result.get("wrong"):
        found.append(f"{len(result['wrong'])} NORMS WRONG")
    exact = result.get("dtype") == "float64"
    if result.get("gradient_error", 0) > (1e-4 if not exact else 1e-6 if result.get("rounds") else 1e-9):
        found.append(f"GRADIENT CHANGED by {result['gradient_error']:.0e} at {result['gradient_error_at']}")
    if result.get("output_change", 0) > (1e-12 if exact else 1e-5):
        found.append(f"OUTPUT CHANGED by {result['output_change']:.0e}")
    return found


def line(result: dict[str, Any]) -> str:
    head = f"{result['name']:52} {result['seconds']:6.1f} s  "
    if "failed" in result:
        return head + f"did not run: {result['failed']}"
    if "crashed" in result:
        return head + "; ".join(verdict(result))
    measured = "".join(f"{result[f'{kind}_measured']:4}/{result[kind]:<4} " for kind in ("matrices", "vectors"))
    error = result["mixed"] or f"{result['error']:.0e} {result['error_at']}"
    notes = [*verdict(result), *(f"{len(names)} × {reason}" for reason, names in result["exceptions"].items())]
    if result["no_gradient"]:
        notes.append(f"{len(result['no_gradient'])} without gradient")
    if result["dtype"] != "float64":
        notes.append(result["dtype"])
    if result["rounds"]:
        notes.append("computes in less than its type in places")
    if result["output_change"]:
        notes.append(f"output rounded differently ({result['output_change']:.0e})")
    if not result["mixed"] and result["reference"] != "batches of one":
        notes.append("compared with each f_i of the batch")
    return f"{head}{measured} " + "; ".join([error, *notes])


WORDS = ("right", "named", "absent", "wrong", "crashed", "not compared")  # absent is neither measured nor named


def counts(results: list[dict[str, Any]]) -> list[str]:
    """How many parameters, and how many architectures by the worst of theirs, are what."""
    parameters: Counter[str] = Counter()
    architectures: Counter[str] = Counter()
    for result in results:
        if "failed" in result:
            architectures["did not run"] += 1
            continue
        parameters.update(result["counts"])
        bad = "crashed" if "crashed" in result else "wrong" if verdict(result) else ""
        worst = ("not compared", "absent", "named", "right")
        architectures[bad or next((w for w in worst if result["counts"].get(w)), "right")] += 1
    return [
        f"{what}: " + ", ".join(f"{word} {found[word]}" for word in words)
        for what, found, words in (
            ("parameters", parameters, WORDS),
            ("architectures", architectures, (*WORDS, "did not run")),
        )
    ]


def summary(results: list[dict[str, Any]]) -> str:
    ran = [r for r in results if "failed" not in r and "crashed" not in r]
    compared = [r for r in ran if not r["mixed"]]
    text = counts(results)
    for library in ("timm", "transformers"):
        of = [r for r in ran if r["name"].startswith(library)]
        if of:
            m, mm = sum(r["matrices"] for r in of), sum(r["matrices_measured"] for r in of)
            v, vv = sum(r["vectors"] for r in of), sum(r["vectors_measured"] for r in of)
            e, ee = sum(r["elements"] for r in of), sum(r["elements_measured"] for r in of)
            whole = sum(r["matrices"] == r["matrices_measured"] for r in of)
            text.append(
                f"{library}: {len(of)} architectures, {whole} measured wholly; ≥ 2-d: {mm} of {m} parameters "
                f"({mm / max(m, 1):.2%}; {ee / max(e, 1):.2%} of elements); 1-d: {vv} of {v} ({vv / max(v, 1):.2%})"
            )
    exact = [r["error"] for r in compared if r["dtype"] == "float64" and not r["wrong"]]
    text.append(
        f"compared with batches of one: {len(compared)}, wrong: {sum(bool(r['wrong']) for r in compared)}; "
        f"largest error of the others {max(exact, default=0):.0e}"
    )
    text += _grouped("Not measured", ((reason, len(n), r) for r in ran for reason, n in r["exceptions"].items()))
    text += _grouped("Wrong", ((v.split(" by ")[0].lstrip("0123456789 "), 1, r) for r in results for v in verdict(r)))
    text += _grouped("Output rounded differently", (("up to 1e-12", 1, r) for r in ran if r["output_change"]))
    text += _grouped(
        "Other reference",
        (
            ("each f_i of the batch: gradients of batches of one do not add up", 1, r)
            for r in compared
            if r["reference"][0] == "e"
        ),
    )
    text += _grouped("Not compared", ((r["mixed"].split(" (")[0], 1, r) for r in ran if r["mixed"]))
    text += _grouped("Did not run", ((r["failed"], 1, r) for r in results if "failed" in r))
    return "\n".join(text)


def _grouped(title: str, found: Iterator[tuple[str, int, dict[str, Any]]]) -> list[str]:
    count: Counter[str] = Counter()
    where = defaultdict(list)
    for reason, n, result in found:
        count[reason] += n
        where[reason].append(result["name"])
    if not count:
        return []
    lines = ["", f"{title}:"]
    for reason, names in sorted(where.items(), key=lambda item: -len(item[1])):
        some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        lines.append(f"  {len(names):4} architectures, {count[reason]:5} ×  {reason}: {some}")
    return lines
