"""Comparing runs: read from W&B, output folders and others; grouped over seeds; as tables, curves, a report."""
