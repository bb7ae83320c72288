"""Models: timm's as Hugging Face models, and small networks of our own.

The package itself imports neither: transformers imports timm, which our networks are registered with then.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from .timm_models import TimmForImageClassification, build_model

__all__ = ["TimmForImageClassification", "build_model"]

__getattr__, __dir__ = lazily(__name__, dict.fromkeys(__all__, ".timm_models"))


def register_networks(timm: ModuleType) -> None:
    """Make timm know our own networks by name."""
    import_module(".networks", __name__)
