"""How much random tests try: some by default, all of it with `--hypothesis-profile=full`."""

from hypothesis import settings

FULL = "full"


def tries(usual: int, full: int) -> int:
    """The number of examples. Either number begins with the same ones, as seeds are fixed."""
    return full if settings.get_current_profile_name() == FULL else usual
