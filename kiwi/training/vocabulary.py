"""A tokenizer learned from the sandbox's language, for a small vision-language model that is trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kiwi.errors import InputError
from kiwi.media.files import atomic_folder, make_folder, write_json
from kiwi.options import Options, positional

_TOKENIZER_FILES = {"prompt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
_BYTE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions(Options):
    """Learn a byte-pair tokenizer from the sandbox's training questions, with Qwen's special tokens.

    OUT is a folder that `NewQwen(tokenizer=OUT)` reads; text with other words is spelled in bytes. OUT/prompt.json is
    the prompt template for a model that knows no other words.

    Args:
        out: folder to write to.
        words: maximum size of the vocabulary, with 256 bytes, without Qwen's own tokens.
        items: number of questions and answers to learn from.
    """

    out: Path = positional()
    words: int = 640
    items: int = 4000

    def __post_init__(self) -> None:
        for name, least in (("words", _BYTE_TOKENS), ("items", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"--{name} must be at least {least}", code="out-of-range", got=value)


def learn_vocabulary(options: VocabularyOptions) -> int:
    """Learn the tokenizer and write its folder; the number of its tokens.

    Raises:
        InputError: the folder cannot be written, or has other files in it.
    """
    from kiwi.models.mllm.new_qwen import train_tokenizer
    from kiwi.sandbox.questions import PROMPTS, training_sentences

    make_folder(options.out.parent)
    tokenizer = train_tokenizer(training_sentences(options.items), options.words)
    with atomic_folder(options.out, _unexpected_files) as folder:
        tokenizer.save_pretrained(folder)
        write_json(folder / "prompt.json", PROMPTS)
    return len(tokenizer)


def _unexpected_files(folder: Path) -> list[str]:
    return sorted({file.name for file in folder.iterdir()} - _TOKENIZER_FILES)
