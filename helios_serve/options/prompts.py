"""Prompts to try with a model, for pages and menus."""

from helios_serve.options.workers import DEFAULT_MODEL

NANO_PROMPTS = (
    "a red ball moves right over a green field",
    "a large white square goes down in front of a night sky",
    "the purple ball runs up on the sand",
    "a blue square slides to the left over a sand beach",
    "a large yellow triangle flies up over the dark night",
)
"""Captions as nano was trained on (docs/nano.md)."""
PUBLISHED_PROMPTS = (
    "A lighthouse in a storm, waves breaking over the rocks",
    "A fox runs through fresh snow",
    "A red ball moves right over a green field",
)


def example_prompts(model: str) -> tuple[str, ...]:
    """Return prompts that a model, a name or a folder, was trained to show."""
    return NANO_PROMPTS if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_PROMPTS
