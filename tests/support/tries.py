"""The number of examples of random tests: some by default, all with the profile `full`."""

from hypothesis import settings

USUAL = "usual"
FULL = "full"


def tries(usual: int, full: int) -> int:
    """Return the number of examples. Both numbers begin with the same ones: seeds are fixed."""
    return full if settings.get_current_profile_name() == FULL else usual
