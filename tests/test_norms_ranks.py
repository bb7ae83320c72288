"""Ranks decide together what is measured: their weights never differ, and two of them are one process."""

import math

import pytest
import torch

from .helpers import ranks

NAMED = {"excluded", "custom function", "outside"}


@pytest.mark.parametrize("bias_and_norm", ["eta", "paper"])
@pytest.mark.parametrize(
    "case",
    ["all alike", "frozen", "empty batch", "expert without rows", "unused", "excluded", "custom function", "outside"],
)
def test_two_processes_are_one(tmp_path, case, bias_and_norm):
    one = ranks.train(case, 0, 1, bias_and_norm=bias_and_norm)
    two = ranks.by_two(tmp_path, case, bias_and_norm=bias_and_norm)
    for result in two:
        assert "error" not in result, result["error"]
        for name, weight in one["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-6, atol=1e-12)
            assert torch.equal(result["weights"][name], two[0]["weights"][name])
        assert [found.keys() for found in result["measured"]] == [found.keys() for found in one["measured"]]
        for step, (found, expected) in enumerate(zip(result["measured"], one["measured"], strict=True)):
            assert found == pytest.approx(expected, rel=1e-9), step
            assert all(d > 0 for d in found.values())
        assert result["untracked"].keys() == one["untracked"].keys()
        assert result["rates"] == [pytest.approx(rates, rel=1e-6) for rates in one["rates"]]
        assert len(result["said"]) == (case in NAMED)
    assert ("special.weight" in one["untracked"]) == (case in NAMED)
    assert all(("special.weight" in found) == (case not in NAMED | {"frozen"}) for found in one["measured"])


@pytest.mark.parametrize("layout", ["FSDP2", "devices"])
@pytest.mark.parametrize("case", ["expert without rows", "custom function", "excluded"])
def test_shards_and_devices_are_one_process(tmp_path, layout, case):
    """On devices NaN stands for what is not measured, until the host knows."""
    one = ranks.train(case, 0, 1)
    two = ranks.by_two(tmp_path, case, layout=layout)
    for result in two:
        assert "error" not in result, result["error"]
        for name, weight in one["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-6, atol=1e-12)
            assert torch.equal(result["weights"][name], two[0]["weights"][name])
        for found, expected in zip(result["measured"], one["measured"], strict=True):
            assert {name: d for name, d in found.items() if not math.isnan(d)} == pytest.approx(expected, rel=1e-9)
        assert result["untracked"].keys() == one["untracked"].keys()


def test_a_part_that_came_past_one_rank_excludes_the_parameter_on_all(tmp_path):
    first, second = ranks.by_two(tmp_path, "outside on one rank")
    assert first["untracked"] == {
        "special.weight": "its gradient, or part of it, did not come through a forward pass that was watched"
    }
    assert second["untracked"] == {"special.weight": "another process cannot measure all of it"}
    assert first["rates"] == second["rates"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert all(found.keys() == {"trunk.weight", "head.weight"} for found in first["measured"] + second["measured"])


@pytest.mark.parametrize("case", ["excluded", "outside on one rank"])
def test_what_one_rank_cannot_measure_may_end_the_training_on_all(tmp_path, case):
    for result in ranks.by_two(tmp_path, case, untracked="error"):
        assert result["error"].startswith(
            "UserError: PerSampleNorms cannot measure 1 parameter(s), and untracked='error' ends the training: "
            "special.weight: "
        )
        assert "\n" not in result["error"]
