"""What a copy of an optimizer has in the place of what cannot follow it."""

from enum import Enum


class LeftBehind(Enum):
    """Stands, in a deep copy or a pickle, for an object that serves the original and would serve a copy wrongly.

    An enum, because its member is the same object after copying, pickling and loading.
    """

    LEFT_BEHIND = "left behind"


LEFT_BEHIND = LeftBehind.LEFT_BEHIND
