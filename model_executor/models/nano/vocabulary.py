"""The words that a trained nano knows, and what it makes of others.

Captions of its world have a small vocabulary (docs/nano.md). Words with a near meaning are read as
one of them, and all others are left out, so that any prompt is one that the model could have seen.
"""

from tokenizers import Regex
from tokenizers.normalizers import Lowercase, Normalizer, Replace, Sequence, Strip
from transformers import PreTrainedTokenizerFast

from helios_serve.model_executor.models.nano.tokenizer import WORDS, build_tokenizer

CAPTION_WORDS = (
    "a an and ball beach big black blue box bright circle clear dark down downward field flies "
    "front goes grass green here in is large left little moves moving night of on over purple "
    "pyramid red right runs sand scene sits sitting sky slides small square stands still the to "
    "triangle up upward white with yellow"
)
"""The words of captions that nano is trained on."""
NEAR_WORDS = {
    "ball": "balls circles sphere dot disc disk planet moon sun",
    "square": "squares cube block boxes brick tile",
    "triangle": "triangles pyramids cone",
    "red": "crimson scarlet pink orange",
    "yellow": "gold golden",
    "blue": "cyan azure navy turquoise",
    "purple": "violet magenta lilac",
    "field": "meadow lawn hill hills forest garden park jungle",
    "sky": "sea ocean lake river water air cloud clouds",
    "sand": "desert dune dunes",
    "night": "midnight space evening",
    "moves": "move rolls walks drives travels glides floats drifts flows swims jumps",
    "still": "rests waits stops static",
    "right": "rightward rightwards",
    "left": "leftward leftwards",
    "up": "upwards rises rising climbs",
    "down": "downwards falls falling sinks drops",
    "small": "tiny",
    "large": "huge giant",
}
"""Words of captions, and others that are read as them."""
TRAINED_WORDS = " ".join([*WORDS.split(), *sorted({*CAPTION_WORDS.split()} - {*WORDS.split()})])
"""The vocabulary of the tokenizer."""


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of a trained nano."""
    return build_tokenizer(TRAINED_WORDS, caption_normalizer())


def caption_normalizer() -> Normalizer:
    """Return a normalizer that turns any text into words of captions; captions stay as they are."""
    near = [
        Replace(Regex(rf"\b(?:{alternatives(others)})\b"), word)
        for word, others in NEAR_WORDS.items()
    ]
    unknown = rf"\b(?!(?:{alternatives(CAPTION_WORDS)})\b)[a-z]+\b"
    return Sequence(
        [
            Lowercase(),
            Replace(Regex("[^a-z]+"), " "),
            *near,
            Replace(Regex(unknown), ""),
            Replace(Regex(" +"), " "),
            Strip(),
        ]
    )


def alternatives(words: str) -> str:
    return "|".join(words.split())
