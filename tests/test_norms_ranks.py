"""Ranks decide together what is measured: their weights never differ, and two of them are one process."""

import math

import pytest
import torch

from .helpers import ranks

NAMED = {"excluded", "custom function", "outside"}
ALIKE = ["all alike", "frozen", "empty batch", "expert without rows", "unused", *sorted(NAMED)]
PLAIN = {f"{case}, {rule}": {"case": case, "bias_and_norm": rule} for case in ALIKE for rule in ("eta", "paper")}
PLACED = {
    f"{case}, {layout}": {"case": case, "layout": layout}
    for case in ("expert without rows", "custom function", "excluded")
    for layout in ("FSDP2", "devices")
}
ENDED = {f"{case} is an error": {"case": case, "untracked": "error"} for case in ("excluded", "outside on one rank")}
CASES = {**PLAIN, **PLACED, "outside on one rank": {"case": "outside on one rank"}, **ENDED}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return ranks.by_two(tmp_path_factory.mktemp("ranks"), CASES)


@pytest.mark.parametrize("name", [*PLAIN, *PLACED])
def test_two_processes_are_one(by_two, name):
    """In shards and on devices too, where NaN stands for what is not measured, until the host knows."""
    options = {key: value for key, value in CASES[name].items() if key != "layout"}
    one, case = ranks.train(**options), options["case"]
    for result in by_two[name]:
        assert "error" not in result, result["error"]
        for layer, weight in one["weights"].items():
            torch.testing.assert_close(result["weights"][layer], weight, rtol=1e-6, atol=1e-12)
            assert torch.equal(result["weights"][layer], by_two[name][0]["weights"][layer])
        for step, (found, expected) in enumerate(zip(result["measured"], one["measured"], strict=True)):
            if name in PLACED:
                found = {layer: d for layer, d in found.items() if not math.isnan(d)}
            assert found == pytest.approx(expected, rel=1e-9), step
            assert all(d > 0 for d in found.values())
        assert result["untracked"].keys() == one["untracked"].keys()
        if name in PLAIN:
            assert result["rates"] == [pytest.approx(rates, rel=1e-6) for rates in one["rates"]]
            assert len(result["said"]) == (case in NAMED)
    assert ("special.weight" in one["untracked"]) == (case in NAMED)
    assert all(("special.weight" in found) == (case not in NAMED | {"frozen"}) for found in one["measured"])


def test_a_part_that_came_past_one_rank_excludes_the_parameter_on_all(by_two):
    first, second = by_two["outside on one rank"]
    assert first["untracked"] == {
        "special.weight": "its gradient, or part of it, did not come through a forward pass that was watched"
    }
    assert second["untracked"] == {"special.weight": "another process cannot measure all of it"}
    assert first["rates"] == second["rates"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert all(found.keys() == {"trunk.weight", "head.weight"} for found in first["measured"] + second["measured"])


@pytest.mark.parametrize("name", ENDED)
def test_what_one_rank_cannot_measure_may_end_the_training_on_all(by_two, name):
    for result in by_two[name]:
        assert result["error"].startswith(
            "UserError: PerSampleNorms cannot measure 1 parameter(s), and untracked='error' ends the training: "
            "special.weight: "
        )
        assert "\n" not in result["error"]
