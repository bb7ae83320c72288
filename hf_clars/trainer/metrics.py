"""Top-1 and top-5 accuracy, with only five class indices per image kept while evaluating."""

from typing import Any

import numpy as np
from torch import Tensor

from ..data.batches import IGNORED_LABEL

_KEPT = 5


def best_classes(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """`preprocess_logits_for_metrics`: logits `[B, C]` → the five best classes, best first, `[B, min(5, C)]`."""
    if isinstance(logits, tuple):
        logits = logits[0]
    return logits.topk(min(_KEPT, logits.shape[-1])).indices


def accuracies(prediction: Any) -> dict[str, float]:
    """`compute_metrics` for `best_classes`: `accuracy` (top 1), and `top5_accuracy` where there are more classes.

    Images that cannot be used (`IGNORED_LABEL`) do not count, and are counted in `skipped`.
    """
    labels = np.asarray(prediction.label_ids)
    used = labels != IGNORED_LABEL
    best = np.asarray(prediction.predictions)[used]
    hit = best == labels[used, None]
    metrics = {"accuracy": float(hit[:, 0].mean())}
    if not used.all():
        metrics["skipped"] = float((~used).sum())
    if best.shape[1] == _KEPT:
        metrics["top5_accuracy"] = float(hit.any(1).mean())
    return metrics
