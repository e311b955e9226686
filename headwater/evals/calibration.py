"""Is a model as often right as it is sure? Expected calibration error of its first choices (Guo et al. 2017)."""

import torch
from torch import Tensor


class Calibration:
    """Collects (confidence, right or wrong) pairs; `error()` is the mean gap between confidence and accuracy over
    bins of equal width, weighted by how many pairs a bin has.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ValueError(f"bins is {bins}; at least 1 is needed")
        self._bins = bins
        self._sums = torch.zeros(3, bins, dtype=torch.float64)  # pairs, confidence, right ones

    def add(self, confidence: Tensor, right: Tensor) -> None:
        """confidence (n) in [0, 1], right (n) bool. ValueError: shapes differ, a confidence outside."""
        if confidence.shape != right.shape:
            raise ValueError(f"confidence has shape {tuple(confidence.shape)}, right {tuple(right.shape)}")
        c = confidence.flatten().double().cpu()
        if len(c) and not (0.0 <= c.min() <= c.max() <= 1.0 + 1e-6):
            raise ValueError(f"a confidence is {c.min().item():.4g} or {c.max().item():.4g}; it lies between 0 and 1")
        at = (c * self._bins).long().clamp(0, self._bins - 1)
        for i, values in enumerate((torch.ones_like(c), c, right.flatten().double().cpu())):
            self._sums[i].scatter_add_(0, at, values)

    def error(self) -> float:
        """From 0 (as often right as sure, in every bin) to 1. ValueError: nothing was added."""
        pairs, confidence, right = self._sums
        if not pairs.sum():
            raise ValueError("nothing was added to the calibration")
        return ((confidence - right).abs().sum() / pairs.sum()).item()
