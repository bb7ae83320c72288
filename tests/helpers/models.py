"""Small models and data that several tests share."""

import torch
import torch.nn.functional as F
from torch import nn


class Classifier(nn.Module):
    """Convolution, GroupNorm, linear: no sample sees another. Takes and returns what a Trainer expects."""

    def __init__(self, features: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, features, 3, padding=1)
        self.norm = nn.GroupNorm(2, features)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features * 16, 3)

    def forward(self, pixel_values, labels=None):
        h = self.dropout(torch.relu(self.norm(self.conv(pixel_values))))
        logits = self.head(h.flatten(1))
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def dataset(size: int, seed: int = 0) -> list[dict]:
    """Images `[1, 4, 4]` whose class is a linear function of their pixels."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(16, 3, generator=torch.Generator().manual_seed(99))
    images = torch.randn(size, 1, 4, 4, generator=generator)
    return [{"pixel_values": x, "labels": int((x.flatten() @ rule).argmax())} for x in images]
