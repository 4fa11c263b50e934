"""Judges that are vision-language models: a rubric and the clips of an item become a request to `kiwi.vlm`."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kiwi.bench.judges import Judge, JudgeAnswer, JudgeError, JudgeSpec, Question
from kiwi.bench.rubric import AnswerFormat
from kiwi.errors import SpecError
from kiwi.media.image import read_image
from kiwi.vlm.request import ClipPart, Part, Request, VisionLanguageModel, VlmError, VlmSpec

TITLES = {"reference": "Reference image", "source": "Original video", "edited": "Edited video"}
"""What an input is called in requests."""

_CACHED_CLIPS = 16
"""Clips kept in memory, two for each of the default number of concurrent questions; each has up to 28 MB."""

_ANSWERS = {
    "prose": "prose",
    "json": "structured, reasons before scores",
    "json-scores-first": "structured, scores before reasons",
}


@dataclass(frozen=True, kw_only=True)
class ModelJudge(JudgeSpec):
    """A vision-language model as judge.

    Args:
        model: the model.
        answer: format of the answers that the built-in rubrics ask for.
        temperature: sampling temperature; null for the provider's default, which some models require.
        max_tokens: maximum number of tokens of an answer, reasoning included.
    """

    model: VlmSpec
    answer: AnswerFormat = "json"
    temperature: float | None = 0.0
    max_tokens: int = 8192

    def __post_init__(self) -> None:
        self.model.require_positive(max_tokens=self.max_tokens)
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise SpecError("temperature is out of range", code="out-of-range", got=self.temperature, expected="0 to 2")

    def choose_format(self, hashes: Mapping[AnswerFormat, Collection[str]]) -> AnswerFormat:
        return self.answer

    def build(self, data: Path) -> Judge:
        return _ModelJudge(self)


class _ModelJudge(Judge):
    def __init__(self, spec: ModelJudge) -> None:
        self._spec, self._sampling = spec, spec.model.sampling
        # Repeats and controls show the same clips again.
        self._sample = lru_cache(_CACHED_CLIPS)(self._sampling.sample)
        self._model: VisionLanguageModel = spec.model.build()
        # The provider names the version of the model in its answers; each answer's is in the ledger.
        self.name, self.version = self._model.name, ""
        self.model = self._model.model
        self.frames, self.temperature = self._model.frames or str(self._sampling), spec.temperature
        self.note = f"frames: {self.frames}; answers: {_ANSWERS[spec.answer]}"

    def ask(self, question: Question) -> JudgeAnswer:
        parts = list(self._list_parts(question))
        request = Request(
            system=question.rubric.text,
            parts=parts,
            schema=question.rubric.schema,
            max_tokens=self._spec.max_tokens,
            temperature=self._spec.temperature,
            seed=question.key.repeat,
        )
        try:
            answer = self._model.answer(request)
        except VlmError as error:
            raise JudgeError(error.reason, retryable=error.retryable, retry_after=error.retry_after) from None
        clips = [part.clip for part in parts if isinstance(part, ClipPart)]
        names = [name for name in question.media if name != "reference"]
        digests = {name: clip.digest for name, clip in zip(names, clips, strict=True)}
        judged = JudgeAnswer(reply=answer.text, model=answer.model, frames=digests, usage=answer.usage)
        if answer.finish != "stop":  # "4" may be the beginning of "4.5"
            reason = f"the answer is incomplete (finish reason: {answer.finish})"
            raise JudgeError(reason, retryable=False, answer=judged)
        return judged

    def _list_parts(self, question: Question) -> Iterator[Part]:
        """The parts of a request: each input after its title, in the order of the suite, and the instruction."""
        for name, path in question.media.items():
            yield f"{TITLES[name]}:"
            if name == "reference":
                yield self._sampling.shrink(read_image(path)[None])[0]
            else:
                yield ClipPart(path, self._sample(path))
        yield f"Editing instruction: {question.instruction}"
