"""A small subword tokenizer built from a word list, without training or download."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.normalizers import Normalizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = (
    "a an the and of in on at to with over under through near by from as is are it its this "
    "that one two three four five six many few person people man woman child girl boy dog cat "
    "bird fish horse city street house room kitchen forest tree flower field hill mountain "
    "river lake ocean sea beach wave sky cloud sun moon star light dark shadow rain snow fog "
    "storm fire smoke water ice sand stone red orange yellow green blue purple pink white "
    "black golden silver bright soft warm cold clear deep small large tall old young slow "
    "slowly fast quickly gently suddenly day night morning evening sunset car train boat "
    "plane robot camera walks runs swims flies stands sits moves turns looks holds opens "
    "close medium wide shot view scene style cinematic realistic motion detail quality static "
    "blurred "
)
WORD_SCORE, CHARACTER_SCORE = -4.0, -10.0


def build_tokenizer(
    words: str = WORDS, normalizer: Normalizer | None = None
) -> "PreTrainedTokenizerFast":
    """Build a unigram tokenizer: `words`, a list in a string, are one token, others are spelled.

    `normalizer` is applied to the text first.
    """
    from transformers import PreTrainedTokenizerFast  # imported here because it takes a while

    characters = ["\u2581", *(chr(code) for code in range(33, 127))]
    pieces = [(piece, 0.0) for piece in SPECIAL]
    pieces += [(f"\u2581{word}", WORD_SCORE) for word in words.split()]
    pieces += [(character, CHARACTER_SCORE) for character in characters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> int:
    """Write the tokenizer's files to `folder` and return its vocabulary size."""
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
