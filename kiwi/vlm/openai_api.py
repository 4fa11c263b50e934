"""`openai:MODEL@URL`: any server with OpenAI's chat completions (vLLM, SGLang, transformers serve, OpenAI itself)."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kiwi.errors import InputError
from kiwi.reading import parse_json
from kiwi.vlm.client import describe_error, parse_retry_after, read_key, require_address, require_key
from kiwi.vlm.frames import ImageFormat, encode_image
from kiwi.vlm.request import Answer, Finish, Request, VisionLanguageModel, VlmError, VlmSpec, read_usage

OPENAI_URL = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent to servers of one's own if the environment has no key: the protocol requires one."""

MAX_BODY = 10_000_000
"""Maximum number of bytes of a server's answer."""

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
        self.require_positive(timeout=self.timeout)
        require_address(self.url)

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
        name = f"openai:{spec.model}"
        self._key = require_key((KEY,), name) if is_openai else read_key((KEY,)) or NO_KEY
        self._openai, self._spec = openai, spec
        # OpenAI's newer models reject the older name, which is the only one that some other servers know.
        self._limit = "max_completion_tokens" if is_openai else "max_tokens"
        # A redirect would send the frames to a server that nobody named.
        client = openai.DefaultHttpxClient(timeout=spec.timeout, follow_redirects=False)
        # max_retries=0, because the benchmark's runner retries, and counts the attempts.
        self._client = openai.OpenAI(
            api_key=self._key, base_url=spec.url, max_retries=0, timeout=spec.timeout, http_client=client
        )
        self.model = spec.model
        address = urlsplit(spec.url)
        path = address.path.rstrip("/").removesuffix("/v1")
        self.name = name if is_openai else f"{name}@{address.netloc}{path}"
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
        end = time.monotonic() + self._spec.timeout
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self._spec.model, messages=messages, seed=request.seed, **options
            ) as response:
                body = self._read_body(response.iter_bytes(), end)
            return self._read_completion(parse_json(body.decode()))
        except self._openai.OpenAIError as error:
            raise self._convert_error(error) from None
        except ValueError as error:
            raise VlmError(f"unreadable answer: {describe_error(error, self._key)}", retryable=True) from None
        except Exception as error:  # errors of the HTTP library while the body is read
            if "httpx" not in type(error).__module__ and "httpcore" not in type(error).__module__:
                raise
            raise VlmError(f"no answer: {describe_error(error, self._key)}", retryable=True) from None

    def _read_body(self, chunks: Iterable[bytes], end: float) -> bytes:
        """Read a body; the client's own time limit is one for each of its parts."""
        body = bytearray()
        for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY:
                raise VlmError(f"the answer has more than {MAX_BODY:,} bytes", retryable=False)
            if time.monotonic() > end:
                raise VlmError(f"no answer within {self._spec.timeout:g} s", retryable=True)
        return bytes(body)

    def _encode_part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        data = base64.b64encode(encode_image(part, self._spec.image_format)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{self._spec.image_format};base64,{data}"}}

    def _read_completion(self, completion: Any) -> Answer:
        try:
            choice, message = completion["choices"][0], completion["choices"][0]["message"]
            text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
            model, counts = completion.get("model"), completion.get("usage")
            if not isinstance(text, str | None) or not isinstance(model, str | None):
                raise TypeError
        except (AttributeError, KeyError, IndexError, TypeError):
            raise VlmError("the server's answer is not a chat completion", retryable=True) from None
        counts = counts if isinstance(counts, dict) else {}
        return Answer(
            text=text or (str(refusal)[:1000] if refusal else ""),  # none if all tokens went into reasoning
            finish="refused" if refusal else _FINISHES.get(str(finish), "other"),
            model=" ".join((model or self._spec.model).split())[:200],
            usage=read_usage(counts.get("prompt_tokens"), counts.get("completion_tokens")),
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
