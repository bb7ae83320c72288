"""Top-1 and top-5 accuracy, with only five class indices per image kept while evaluating."""

from typing import Any

import numpy as np
from torch import Tensor

_KEPT = 5


def best_classes(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """`preprocess_logits_for_metrics`: logits `[B, C]` → the five best classes, best first, `[B, min(5, C)]`."""
    if isinstance(logits, tuple):
        logits = logits[0]
    return logits.topk(min(_KEPT, logits.shape[-1])).indices


def accuracies(prediction: Any) -> dict[str, float]:
    """`compute_metrics` for `best_classes`: `accuracy` (top 1), and `top5_accuracy` where there are more classes."""
    best = np.asarray(prediction.predictions)
    hit = best == np.asarray(prediction.label_ids)[:, None]
    metrics = {"accuracy": float(hit[:, 0].mean())}
    if best.shape[1] == _KEPT:
        metrics["top5_accuracy"] = float(hit.any(1).mean())
    return metrics
