"""Train a tokenizer on the sandbox's questions, for a small vision-language model that is trained from scratch."""

from dataclasses import dataclass
from pathlib import Path

from kiwi.errors import InputError
from kiwi.media.files import atomic_folder, make_folder, write_json
from kiwi.options import Options, positional

_TOKENIZER_FILES = {"prompt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
_BYTE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions(Options):
    """Train a byte-pair tokenizer with Qwen's special tokens on the sandbox's training questions.

    `NewQwen(tokenizer=OUT)` reads the folder OUT. Words that are not in the vocabulary are encoded as bytes.
    OUT/prompt.json is a prompt template that uses only words of the vocabulary.

    Args:
        out: folder to write to
        words: maximum vocabulary size, including 256 byte tokens and excluding Qwen's special tokens
        items: number of questions and answers to train on
    """

    out: Path = positional()
    words: int = 640
    items: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in (("words", _BYTE_TOKENS), ("items", 1)):
            if (value := getattr(self, name)) < minimum:
                raise InputError(f"--{name} must be at least {minimum}", code="out-of-range", got=value)


def learn_vocabulary(options: VocabularyOptions) -> int:
    """Train the tokenizer, write its folder, and return the number of tokens.

    Raises:
        InputError: the folder cannot be written, or contains other files.
    """
    from kiwi.models.mllm.new_qwen import train_tokenizer
    from kiwi.sandbox.questions import PROMPTS, training_sentences

    make_folder(options.out.parent)
    tokenizer = train_tokenizer(training_sentences(options.items), options.words)
    with atomic_folder(options.out, _list_unexpected_files) as folder:
        tokenizer.save_pretrained(folder)
        write_json(folder / "prompt.json", PROMPTS)
    return len(tokenizer)


def _list_unexpected_files(folder: Path) -> list[str]:
    return sorted({file.name for file in folder.iterdir()} - _TOKENIZER_FILES)
