"""Models: timm's as Hugging Face models, and small networks of our own."""

from .timm_models import TimmForImageClassification, build_model

__all__ = ["TimmForImageClassification", "build_model"]
