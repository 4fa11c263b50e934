"""A request with an image and a clip."""

import numpy as np
import pytest

from kiwi.media.video import write_video
from kiwi.vlm.frames import FrameSampling
from kiwi.vlm.request import ClipPart, Request, VlmError
from tests.loopback import serve

__all__ = ["serve"]

SCHEMA = {"type": "object", "properties": {"scores": {"type": "object"}}}


def require_failure(server, model, request, retryable, wait, secret):
    """Check that a model fails after one request, and what its error says of another attempt and of the key."""
    with pytest.raises(VlmError) as caught:
        model.answer(request)
    assert (caught.value.retryable, caught.value.retry_after) == (retryable, wait)
    assert len(server.requests) == 1  # the client does not retry by itself
    assert secret not in str(caught.value)
    assert 0 < len(caught.value.reason) < 500


@pytest.fixture
def request_with_clip(tmp_path):
    """A question about an image and a clip of one second."""
    frames = np.zeros((8, 32, 48, 3), np.uint8)
    frames[4:] = 255
    write_video(tmp_path / "clip.mp4", frames, 8)
    sampling = FrameSampling(fps=2)
    clip = ClipPart(tmp_path / "clip.mp4", sampling.sample(tmp_path / "clip.mp4"))
    parts = [
        "Reference image:",
        np.full((8, 8, 3), 7, np.uint8),
        "Edited video:",
        clip,
        "Editing instruction: paint it",
    ]
    return Request(system="Judge the edit.", parts=parts, schema=SCHEMA, seed=3)
