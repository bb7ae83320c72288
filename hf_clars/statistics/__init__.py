"""Moments of per-sample gradients over a data set, and gradient noise."""
