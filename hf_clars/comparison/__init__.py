"""Comparing runs: read from W&B, Trainer's folders and others; grouped over seeds; as tables, curves, a report."""
