"""Gradient noise of a model and its layers, from one step's norms and averages over steps."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..formulas import gradient_and_noise, gradient_variance_factor, noise_scale

WHOLE = ""  # the name under which averages of the whole model are kept
Averages = dict[str, list[float]]  # name → sums of |G|² and tr Σ, weighted by smoothing^age, and of the weights


def noise_statistics(
    squares: Tensor, samples: int, names: Mapping[str, bool], averages: Averages, smoothing: float
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The statistics that `GradientStatisticsCallback` lists, of the whole model and of its layers.

    Args:
        squares: `Σ_i ‖c_i‖²` and `‖Σ_i c_i‖²` of each parameter, on the host, shape `[2, K]`.
        samples: n, at least 2.
        names: the K parameters' names → whether each is a layer; all count for the model.
        averages: of the steps before; changed in place, to begin with empty.
        smoothing: share that the old value keeps in an average.

    Returns:
        Statistic → value of the model, and the same by layer. Values that are not finite are left out; where the
        model's are not (a gradient overflowed) both are empty and the averages stay as they were.
    """
    contributions, gradient = torch.cat((squares, squares.sum(1, keepdim=True)), 1)
    gradient_square, noise_trace = gradient_and_noise(samples * contributions, 1, gradient, samples)
    if not torch.isfinite(gradient_square[-1] + noise_trace[-1]):
        return {}, {}
    shown = [k for k, is_layer in enumerate([*names.values(), True]) if is_layer]
    shown_names = [[*names, WHOLE][k] for k in shown]
    step = torch.stack((gradient_square, noise_trace))[:, shown]
    smooth = step.new_tensor(_update(averages, smoothing, zip(shown_names, step.T.tolist(), strict=True))).T
    columns = {
        "gradient_square": smooth[0],
        "noise_trace": smooth[1],
        "gradient_noise_scale": noise_scale(*smooth),
        "gradient_noise_scale_raw": noise_scale(*step),
        "gradient_variance_factor": gradient_variance_factor(contributions, gradient.sqrt(), samples)[shown],
    }
    rows = torch.stack(list(columns.values()), 1).tolist()
    statistics = {
        name: {key: value for key, value in zip(columns, row, strict=True) if math.isfinite(value)}
        for name, row in zip(shown_names, rows, strict=True)
    }
    return statistics.pop(WHOLE), statistics


def _update(averages: Averages, smoothing: float, new: Iterable[tuple[str, list[float]]]) -> list[list[float]]:
    result = []
    for name, values in new:
        old = averages.get(name, [0.0] * (len(values) + 1))
        averages[name] = [smoothing * before + now for before, now in zip(old, (*values, 1.0), strict=True)]
        *sums, weight = averages[name]
        result.append([value / weight for value in sums])
    return result
