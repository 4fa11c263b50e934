"""Vision-language models that answer questions about clips, behind one interface.

`Request` and `Answer` are the same for every provider, and so are the frames (`FrameSampling`). A provider's package
is imported when a model is built, and keys are read from the environment.
"""

from kiwi.errors import InputError
from kiwi.vlm.frames import FrameSampling
from kiwi.vlm.gemini import Gemini
from kiwi.vlm.openai_api import OPENAI_URL, OpenAIModel
from kiwi.vlm.qwen import Qwen
from kiwi.vlm.request import Answer, Request, VisionLanguageModel, VlmError, VlmSpec

__all__ = ["Answer", "FrameSampling", "Request", "VisionLanguageModel", "VlmError", "VlmSpec", "parse_model"]

FORMS = ("gemini:MODEL", "openai:MODEL", "openai:MODEL@URL", "qwen:PATH")
"""The names of models that `parse_model` reads."""


def parse_model(text: str, sampling: FrameSampling | None = None, *, upload: bool = False) -> VlmSpec | None:
    """The spec of a model that is named as PROVIDER:MODEL (`FORMS`); None for another provider.

    Args:
        text: the name.
        sampling: how frames are sampled from clips.
        upload: show the provider whole video files instead of frames.

    Raises:
        InputError: the model has no name, or the provider cannot be shown whole videos.
    """
    provider, _, model = text.partition(":")
    if provider not in ("gemini", "openai", "qwen"):
        return None
    sampling = sampling or FrameSampling()
    if upload and provider != "gemini":
        raise InputError(f"{provider} cannot be shown whole videos", code="unsupported-option", expected="frames")
    name, at, url = model.rpartition("@") if provider == "openai" and "@" in model else (model, "", "")
    if not name or (at and not url):
        forms = [form for form in FORMS if form.startswith(provider)]
        raise InputError(f"the judge {text!r} names no model", code="invalid-option", expected=" or ".join(forms))
    if provider == "qwen":
        return Qwen(path=name, sampling=sampling)
    if provider == "gemini":
        return Gemini(model=name, sampling=sampling, upload=upload)
    return OpenAIModel(model=name, url=url or OPENAI_URL, sampling=sampling)
