"""Why two layer-wise methods end where they do: M_k, a layer's share of the rate, and γ_k, side by side.

    python recipes/studies/why.py RESULT RESULT --out why.png

A result is the file of a run with γ_k of steps and M_k, as `hf-clars tune` leaves them of winners; one row each. The
share is what a step moves a layer by, over that by which LARS without weight decay moves every layer:
`(γ_k ‖g_k‖ / ‖w_k‖) / (γ_scale η)`. CLARS's is `ρ_k = ‖g_k‖ / mean_i ‖g_{k,i}‖`, LARS's `‖g_k‖ / (‖g_k‖ + λ ‖w_k‖)`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_clars.errors import UserError
from hf_clars.experiments.results import Result
from hf_clars.image_classification.panels import draw_layers, name_layers, need_matplotlib, panels, save
from hf_clars.validation.schema import read_as

QUANTITIES = ("gradient_variance_factor", "share", "gamma")  # of a layer, from left to right


def read(path: Path) -> Result:
    """Raises `UserError` where it lacks what is drawn."""
    try:
        result: Result = read_as(Result, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if result.settings.get("optim") not in ("clars", "lars") or not result.layers or not result.gradients:
        wanted = "a run of clars or lars with layer_statistics_steps and gradient_statistics_steps"
        raise UserError(f"{path}: give the result of {wanted}")
    if "weight_decay" not in result.settings:
        raise UserError(f"{path}: its settings do not state weight_decay, on which LARS's share depends")
    return result


def with_shares(result: Result) -> list[dict[str, Any]]:
    """The records of γ_k, with each layer's share of the rate."""
    settings = result.settings
    decayed = settings["optim"] == "lars" and settings.get("decay_in_denominator", True)
    decay = float(settings["weight_decay"]) if decayed else 0.0

    def share(layer: dict[str, float]) -> dict[str, float]:
        """Nothing where a layer has no gradient, or its samples were not measured."""
        gradient = layer["gradient_norm"]
        lars = gradient + decay * layer["weight_norm"]
        whole = layer.get("denominator", 0.0) if settings["optim"] == "clars" else lars
        return {"share": gradient / whole} if whole else {}

    return [
        {**record, "layers": {name: {**layer, **share(layer)} for name, layer in record["layers"].items()}}
        for record in result.layers
    ]


def draw(results: Sequence[Result]) -> Any:
    """A matplotlib figure, `[results, QUANTITIES]`; a quantity has one scale for all."""
    figure, axes = panels(len(results), len(QUANTITIES))
    for result, row in zip(results, axes, strict=True):
        steps = with_shares(result)
        share = "ρ_k, the share of γ_scale η" if result.settings["optim"] == "clars" else "share of γ_scale η"
        for quantity, name, axis in zip(QUANTITIES, ("M_k", share, "γ_k"), row, strict=True):
            draw_layers(axis, result.gradients if name == "M_k" else steps, quantity, "epoch")
            axis.set_title(f"{result.place['method']}: {name}", fontsize=9, parse_math=False)
            axis.set_xlabel("epoch")
        name_layers(row[-1], steps)
    for column in axes.T:
        ends = [axis.get_ylim() for axis in column]
        for axis in column:
            axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT")
    parser.add_argument("--out", type=Path, default=Path("why.png"), help="PNG or SVG")
    args = parser.parse_args()
    try:
        results = [read(path) for path in args.results]
        need_matplotlib()
        print(save(draw(results), args.out))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
