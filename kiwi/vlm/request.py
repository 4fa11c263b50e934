"""Requests to a vision-language model and its answers, the same for every provider."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kiwi.errors import SpecError
from kiwi.spec import LARGEST, Spec
from kiwi.vlm.frames import FrameSampling, SampledClip

Finish = Literal["stop", "length", "refused", "other"]
"""Why an answer ended: at its end, at the limit of tokens, by a refusal or a safety filter, or otherwise."""


class VlmError(Exception):
    """A model gave no answer.

    Args:
        reason: explanation for the ledger and the report, without keys.
        retryable: whether another attempt may succeed.
        retry_after: seconds to wait before the next attempt, if the provider asked for a wait.
    """

    def __init__(self, reason: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retryable, self.retry_after = reason, retryable, retry_after


@dataclass(frozen=True, eq=False)
class ClipPart:
    """A clip in a request: its file, and the frames sampled from it, which most providers show instead of the file."""

    path: Path
    clip: SampledClip


Part = str | np.ndarray | ClipPart
"""Text, an image (uint8 RGB `[H, W, 3]`), or a clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One question.

    Args:
        system: system instruction.
        parts: text, images and clips in the order in which the model reads them.
        schema: JSON schema of the answer; None for free text. Providers without structured output ignore it, so
            `system` must describe the format too.
        max_tokens: maximum number of tokens of the answer, reasoning included.
        temperature: sampling temperature; None for the provider's default.
        seed: sampling seed, for providers that have one.
    """

    system: str
    parts: Sequence[Part]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 8192
    temperature: float | None = 0.0
    seed: int = 0

    def flatten(self) -> Iterator[str | np.ndarray]:
        """The parts as text and images only: each frame of a clip follows its time, such as `0.50 s:`.

        All providers that are shown frames send this sequence.
        """
        for part in self.parts:
            if isinstance(part, ClipPart):
                for time, frame in zip(part.clip.times, part.clip.frames_FHWC, strict=True):
                    yield f"{time:.2f} s:"
                    yield frame
            else:
                yield part


@dataclass(frozen=True, kw_only=True)
class Usage(Spec):
    """Numbers of tokens read and written (reasoning included) in one answer, as the provider counts them."""

    prompt_tokens: int = 0
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= count <= LARGEST for count in (self.prompt_tokens, self.answer_tokens)):
            raise SpecError("a number of tokens is out of range", code="out-of-range", got=self)


def read_usage(prompt: Any, answer: Any) -> Usage | None:
    """The numbers of tokens that a server states; None if they are not numbers of tokens."""
    if type(prompt) is not int or type(answer) is not int:
        return None
    is_plausible = 0 <= prompt <= LARGEST and 0 <= answer <= LARGEST
    return Usage(prompt_tokens=prompt, answer_tokens=answer) if is_plausible else None


def sum_usage(usages: Iterable[Usage | None]) -> Usage:
    """Add up numbers of tokens; None counts as none."""
    known = [usage for usage in usages if usage is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in known),
        answer_tokens=sum(usage.answer_tokens for usage in known),
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer.

    Args:
        text: the text, without reasoning that the provider separates.
        finish: why it ended; only "stop" is a complete answer.
        model: the model as the provider names it, which may be a dated version of the requested one.
        usage: numbers of tokens; None if the provider reports none.
    """

    text: str
    finish: Finish
    model: str
    usage: Usage | None = None


class VisionLanguageModel(ABC):
    """A model that answers requests. `answer` may be called from several threads at once.

    Attributes:
        name: the requested model with its provider, such as "gemini:gemini-3-flash-preview".
        model: the requested model alone.
        frames: how the model's provider samples frames, if it does so itself.
        has_structured_output: whether answers follow `Request.schema`.
    """

    name: str
    model: str
    frames: str | None = None
    has_structured_output: bool = False

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """Answer a request. Raises VlmError if there is no answer."""


@dataclass(frozen=True, kw_only=True)
class VlmSpec(Spec, ABC):
    """Base class of the specs of all providers.

    Args:
        sampling: how frames are sampled from clips.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)

    def require_positive(self, **values: float) -> None:
        """Raise a SpecError for a value that is not above 0."""
        for name, value in values.items():
            if not 0 < value <= LARGEST:
                raise SpecError(f"{name} must be positive", code="out-of-range", got=value)

    @abstractmethod
    def build(self) -> VisionLanguageModel:
        """Connect to the provider or load the model.

        Raises:
            InputError: a package, key or folder is missing; the message names it.
        """
