"""`gemini:MODEL`: Google's Gemini models, which see sampled frames, or whole videos like the published judge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kiwi.errors import InputError
from kiwi.vlm.client import bound_wait, describe_error, parse_retry_after, require_address, require_key
from kiwi.vlm.frames import ImageFormat, encode_image
from kiwi.vlm.request import Answer, ClipPart, Finish, Request, VisionLanguageModel, VlmError, VlmSpec, read_usage

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")

_FINISHES: dict[str, Finish] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"), "refused"),
}


@dataclass(frozen=True, kw_only=True)
class Gemini(VlmSpec):
    """A Gemini model. The key is read from GEMINI_API_KEY or GOOGLE_API_KEY.

    Args:
        model: the model's name, such as gemini-3-flash-preview.
        upload: upload whole videos, from which the provider samples frames itself (as for the published scores),
            instead of sending the frames of `sampling`. Uploaded files are deleted after each question.
        image_format: encoding of the images.
        structured: ask for answers by a JSON schema.
        timeout: maximum seconds to wait for an answer, and for an uploaded file to be processed.
        poll: seconds between checks whether an uploaded file has been processed.
        url: address of the API; by default Google's.
    """

    model: str
    upload: bool = False
    image_format: ImageFormat = "png"
    structured: bool = True
    timeout: float = 300.0
    poll: float = 2.0
    url: str | None = None

    def __post_init__(self) -> None:
        self.require_positive(timeout=self.timeout, poll=self.poll)
        if self.url is not None:
            require_address(self.url)

    def build(self) -> GeminiClient:
        return GeminiClient(self)


class GeminiClient(VisionLanguageModel):
    """A connection to the provider; see `Gemini`."""

    def __init__(self, spec: Gemini) -> None:
        try:
            from google import genai
            from google.genai import errors, types
        except ImportError:
            fix = 'pip install "kiwi-video[judges]"'
            raise InputError("the package google-genai is not installed", code="missing-package", fix=fix) from None
        self._key = require_key(KEYS, f"gemini:{spec.model}")
        self._spec, self._types, self._errors = spec, types, errors
        options = types.HttpOptions(base_url=spec.url, timeout=round(spec.timeout * 1000))
        options.retry_options = types.HttpRetryOptions(attempts=1)  # the benchmark's runner retries
        self._client = genai.Client(api_key=self._key, vertexai=False, http_options=options)
        self.name, self.model = f"gemini:{spec.model}", spec.model
        self.frames = "sampled by the provider from uploaded videos" if spec.upload else None
        self.has_structured_output = spec.structured

    def answer(self, request: Request) -> Answer:
        config = self._types.GenerateContentConfig(
            system_instruction=request.system,
            temperature=request.temperature,
            max_output_tokens=request.max_tokens,
            seed=request.seed,
        )
        if request.schema is not None and self._spec.structured:
            config.response_mime_type, config.response_json_schema = "application/json", dict(request.schema)
        with self._convert_errors(), self._encode_parts(request) as parts:
            response = self._client.models.generate_content(
                model=self._spec.model, contents=[self._types.Content(role="user", parts=parts)], config=config
            )
            return self._read_response(response)

    @contextmanager
    def _encode_parts(self, request: Request) -> Iterator[list[Any]]:
        """Encode the parts of a request; uploaded files are deleted at the end, also after a failure."""
        uploaded: list[Any] = []
        try:
            encoded = []
            for part in request.parts if self._spec.upload else request.flatten():
                if isinstance(part, str):
                    encoded.append(self._types.Part.from_text(text=part))
                elif isinstance(part, ClipPart):
                    file = self._client.files.upload(file=str(part.path))
                    uploaded.append(file)
                    file = self._wait_until_processed(file)
                    encoded.append(self._types.Part.from_uri(file_uri=file.uri, mime_type=file.mime_type))
                else:
                    data = encode_image(part, self._spec.image_format)
                    encoded.append(self._types.Part.from_bytes(data=data, mime_type=f"image/{self._spec.image_format}"))
            yield encoded
        finally:
            for file in uploaded:
                with suppress(Exception):  # the provider deletes files after two days
                    self._client.files.delete(name=file.name)

    def _wait_until_processed(self, file: Any) -> Any:
        end = time.monotonic() + self._spec.timeout
        while (state := getattr(file.state, "name", None)) == "PROCESSING":
            if time.monotonic() > end:
                raise VlmError(f"the video was not processed within {self._spec.timeout:g} s", retryable=True)
            time.sleep(self._spec.poll)
            file = self._client.files.get(name=file.name)
        if state != "ACTIVE":
            reason = getattr(file.error, "message", None) or "no reason was given"
            raise VlmError(f"the provider could not process the video: {str(reason)[:200]}", retryable=False)
        return file

    def _read_response(self, response: Any) -> Answer:
        if not response.candidates:
            block = getattr(response.prompt_feedback, "block_reason", None)
            reason = "the answer is empty" if block is None else f"refused: {getattr(block, 'name', block)}"
            raise VlmError(reason, retryable=block is None)
        candidate, counts = response.candidates[0], response.usage_metadata
        parts = candidate.content.parts if candidate.content is not None else None
        finish = _FINISHES.get(getattr(candidate.finish_reason, "name", ""), "other")
        usage = None
        if counts is not None:
            answered = (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0)
            usage = read_usage(counts.prompt_token_count, answered)
        text = "".join(part.text for part in parts or () if part.text and not part.thought)
        return Answer(text=text, finish=finish, model=response.model_version or self._spec.model, usage=usage)

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        """Turn the client's errors into VlmErrors."""
        try:
            yield
        except VlmError:
            raise
        except self._errors.APIError as error:
            # A quota for the day has the same status as a rate limit, but is not refilled within minutes.
            is_spent = "PerDay" in str(error.details)
            retryable = (error.code in (408, 429) and not is_spent) or error.code >= 500
            headers = getattr(error.response, "headers", None) or {}
            wait = (_read_retry_delay(error.details) or parse_retry_after(headers)) if retryable else None
            reason = f"status {error.code}: {describe_error(Exception(error.message or error.status), self._key)}"
            raise VlmError(reason, retryable=retryable, retry_after=wait) from None
        except OSError as error:
            raise VlmError(f"no connection: {describe_error(error, self._key)}", retryable=True) from None
        except Exception as error:  # the client does not wrap the errors of its HTTP library and of its JSON parser
            if not any(word in type(error).__module__ for word in ("httpx", "httpcore", "json", "pydantic", "genai")):
                raise
            raise VlmError(f"no answer: {describe_error(error, self._key)}", retryable=True) from None


def _read_retry_delay(details: Any) -> float | None:
    """The wait in an error's RetryInfo, such as "retryDelay": "17s"; None without one."""
    try:
        for entry in details["error"]["details"]:
            if "retryDelay" in entry:
                return bound_wait(float(str(entry["retryDelay"]).removesuffix("s")))
    except (KeyError, TypeError, ValueError):
        pass
    return None
