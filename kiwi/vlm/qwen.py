"""`qwen:PATH`: a Qwen2.5-VL, Qwen3-VL or similar model of transformers, in this process.

The only module here that imports torch and transformers, when the model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np

from kiwi.errors import CheckpointError, first_line
from kiwi.media.image import to_pil
from kiwi.vlm.request import Answer, Request, Usage, VisionLanguageModel, VlmError, VlmSpec


@dataclass(frozen=True, kw_only=True)
class Qwen(VlmSpec):
    """A model of transformers that reads images and writes text. It decodes greedily, or samples above temperature 0.

    Args:
        path: model folder, or hub id.
        device: cpu, cuda, cuda:1 ...; by default cuda if there is one.
        dtype: type of the weights; `auto` for that of the files.
    """

    path: str
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def build(self) -> LocalModel:
        return LocalModel(self)


class LocalModel(VisionLanguageModel):
    """A loaded model; see `Qwen`. Questions of several threads are answered one after another."""

    def __init__(self, spec: Qwen) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from kiwi.models.device import resolve_device
        from kiwi.weights.hub import locate
        from kiwi.weights.strict import fingerprint

        folder = locate(spec.path, "model", "give the folder of a vision-language model, or its hub id")
        device = resolve_device(spec.device)
        try:
            self._processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=spec.dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            expected = "a model folder of transformers with a processor, such as that of Qwen2.5-VL"
            problem = f"{spec.path} cannot be loaded as a vision-language model"
            raise CheckpointError(problem, code="unreadable-model", got=first_line(error), expected=expected) from None
        if lacking := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
            problem = f"the weights of {spec.path} are incomplete"
            raise CheckpointError(problem, code="mismatched-weights", got=f"{len(lacking)} lack: {lacking[0]}")
        if getattr(self._processor, "chat_template", None) is None:
            problem = f"{spec.path} has no chat template"
            raise CheckpointError(problem, code="missing-file", expected="chat_template.jinja beside the processor")
        self._torch, self._lock, self._model = torch, Lock(), model.to(device).eval()
        self.model = spec.path.rstrip("/").rpartition("/")[2]
        self.name = f"qwen:{self.model}"
        self._version = f"{self.model} ({fingerprint(model.state_dict())})"

    def answer(self, request: Request) -> Answer:
        content = [_describe_part(part) for part in request.flatten()]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {"role": "user", "content": content},
        ]
        with self._lock, self._torch.inference_mode():
            try:
                inputs = self._processor.apply_chat_template(
                    messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                ).to(self._model.device)
                written = self._generate(inputs, request)
            except self._torch.OutOfMemoryError as error:
                reason = f"out of memory: {first_line(error)[:200]}; sample fewer or smaller frames"
                raise VlmError(reason, retryable=False) from None
        return Answer(
            text=self._processor.tokenizer.decode(written, skip_special_tokens=True),
            finish="stop" if written[-1:] and written[-1] in self._list_stop_tokens() else "length",
            model=self._version,
            usage=Usage(prompt_tokens=inputs["input_ids"].shape[1], answer_tokens=len(written)),
        )

    def _generate(self, inputs: Any, request: Request) -> list[int]:
        """Generate the tokens of an answer, including the token that stops it."""
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if request.temperature:
            options = {"do_sample": True, "temperature": request.temperature}
            self._torch.manual_seed(request.seed)
        generated = self._model.generate(**inputs, max_new_tokens=request.max_tokens, **options)
        tokens: list[int] = generated[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    def _list_stop_tokens(self) -> list[int]:
        stop = self._model.generation_config.eos_token_id
        return [stop] if isinstance(stop, int) else list(stop or ())


def _describe_part(part: str | np.ndarray) -> dict[str, Any]:
    """A part of a request in the form of transformers' chat templates."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": to_pil(part)}
