"""`openai:MODEL@URL`: any server with OpenAI's chat completions (vLLM, SGLang, transformers serve, OpenAI itself)."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kiwi.errors import InputError
from kiwi.vlm.client import describe_error, parse_retry_after, read_key
from kiwi.vlm.frames import ImageFormat, encode_image
from kiwi.vlm.request import Answer, Finish, Request, Usage, VisionLanguageModel, VlmError, VlmSpec

OPENAI_URL = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent to servers of one's own if the environment has no key: the protocol requires one."""

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "refused"}


@dataclass(frozen=True, kw_only=True)
class OpenAIModel(VlmSpec):
    """A model behind a server that is compatible with OpenAI's. Frames are sent as images, each after its time.

    The key is read from OPENAI_API_KEY, which other servers than OpenAI's may not need.

    Args:
        model: the model's name at the server.
        url: address of the API, such as http://localhost:8000/v1.
        image_format: encoding of the images.
        structured: ask for answers by a JSON schema; servers that ignore the request are noticed by their answers.
        timeout: maximum seconds to wait for an answer.
    """

    model: str
    url: str = OPENAI_URL
    image_format: ImageFormat = "png"
    structured: bool = True
    timeout: float = 300.0

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            expected = "an address such as http://localhost:8000/v1, without a user, a key or a query"
            raise InputError("the server's address is not usable", code="invalid-url", expected=expected)

    def build(self) -> OpenAIClient:
        return OpenAIClient(self)


class OpenAIClient(VisionLanguageModel):
    """A connection to a server; see `OpenAIModel`."""

    def __init__(self, spec: OpenAIModel) -> None:
        try:
            import openai
        except ImportError:
            fix = 'pip install "kiwi-video[judges]"'
            raise InputError("the package openai is not installed", code="missing-package", fix=fix) from None
        is_openai = urlsplit(spec.url).hostname == urlsplit(OPENAI_URL).hostname
        self._key = read_key((KEY,), f"openai:{spec.model}") if is_openai else os.environ.get(KEY, "").strip() or NO_KEY
        self._openai, self._spec = openai, spec
        # OpenAI's newer models reject the older name, which is the only one that some other servers know.
        self._limit = "max_completion_tokens" if is_openai else "max_tokens"
        # The benchmark's runner retries, and counts the attempts.
        self._client = openai.OpenAI(api_key=self._key, base_url=spec.url, max_retries=0, timeout=spec.timeout)
        self.model = spec.model
        self.name = f"openai:{spec.model}" + ("" if is_openai else f"@{urlsplit(spec.url).netloc}")
        self.has_structured_output = spec.structured

    def answer(self, request: Request) -> Answer:
        options: dict[str, Any] = {self._limit: request.max_tokens}
        if request.temperature is not None:
            options["temperature"] = request.temperature
        if request.schema is not None and self._spec.structured:
            schema = {"name": "answer", "strict": True, "schema": dict(request.schema)}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        content = [self._encode_part(part) for part in request.flatten()]
        messages: Any = [{"role": "system", "content": request.system}, {"role": "user", "content": content}]
        try:
            completion = self._client.chat.completions.create(
                model=self._spec.model, messages=messages, seed=request.seed, **options
            )
        except self._openai.OpenAIError as error:
            raise self._convert_error(error) from None
        except ValueError as error:  # the client parses the body before it checks the type of its content
            raise VlmError(f"unreadable answer: {describe_error(error, self._key)}", retryable=True) from None
        return self._read_completion(completion)

    def _encode_part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        data = base64.b64encode(encode_image(part, self._spec.image_format)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{self._spec.image_format};base64,{data}"}}

    def _read_completion(self, completion: Any) -> Answer:
        try:
            choice, usage = completion.choices[0], completion.usage
            text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
            finish, model = choice.finish_reason, completion.model
        except (AttributeError, IndexError, TypeError):
            raise VlmError("the server's answer is not a chat completion", retryable=True) from None
        if refusal:
            raise VlmError(f"refused: {str(refusal)[:200]}", retryable=False)
        if not isinstance(text, str) or not isinstance(model, str):
            raise VlmError(f"the answer has no text (finish reason {finish})", retryable=finish == "stop")
        counts = None if usage is None else (usage.prompt_tokens, usage.completion_tokens)
        return Answer(
            text=text,
            finish=_FINISHES.get(finish, "other"),
            model=model,
            usage=None if counts is None else Usage(prompt_tokens=counts[0] or 0, answer_tokens=counts[1] or 0),
        )

    def _convert_error(self, error: Exception) -> VlmError:
        reason = describe_error(error, self._key)
        if isinstance(error, self._openai.APITimeoutError):
            return VlmError(f"no answer within {self._spec.timeout:g} s", retryable=True)
        if isinstance(error, self._openai.APIConnectionError):
            return VlmError(f"no connection to {urlsplit(self._spec.url).netloc}: {reason}", retryable=True)
        if not isinstance(error, self._openai.APIStatusError):
            return VlmError(reason, retryable=True)
        # A spent quota has the status of a rate limit, but no wait refills it.
        is_temporary = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
        retryable = is_temporary and getattr(error, "code", None) != "insufficient_quota"
        wait = parse_retry_after(error.response.headers) if retryable else None
        return VlmError(f"status {error.status_code}: {reason}", retryable=retryable, retry_after=wait)
