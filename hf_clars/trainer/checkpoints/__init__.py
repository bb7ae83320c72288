"""Checkpoints: written whole, found again, loaded and deleted without loss."""
