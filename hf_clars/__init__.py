"""CLARS."""
