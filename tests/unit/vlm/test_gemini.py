"""The client against a loopback server that speaks the Gemini API's protocol, in success and in failure."""

import base64
import re

import pytest

from kiwi.errors import InputError
from kiwi.media.image import read_image
from kiwi.vlm.gemini import Gemini
from kiwi.vlm.request import Usage, VlmError
from tests.loopback import Reply
from tests.unit.vlm.conftest import SCHEMA, require_failure

SECRET = "AIza-very-secret-key-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)


def generated(text="fine", finish="STOP", **parts):
    content = {"role": "model", "parts": [{"text": "Let me look.", "thought": True}, {"text": text}]}
    counts = {"promptTokenCount": 900, "candidatesTokenCount": 5, "thoughtsTokenCount": 20}
    candidate = {"content": content, "finishReason": finish, "index": 0, **parts}
    return {"candidates": [candidate], "modelVersion": "gemini-judge-001", "usageMetadata": counts}


class Google:
    """The server: files become ACTIVE at the second look; `answer` is what a question gets."""

    def __init__(self, answer, state="ACTIVE"):
        self.answer, self.state, self.files, self.deleted, self.url = answer, state, {}, [], ""

    def __call__(self, method, path, body):
        path = re.sub(r"/v1(beta)?/|\?.*", "/", path).rstrip("/")
        if path == "/upload/files":
            name = f"files/{len(self.files)}"
            self.files[name] = 0
            return Reply({}, headers={"X-Goog-Upload-URL": f"{self.url}/data/{name}"})
        if path.startswith("/data/"):
            file = self.describe(path.removeprefix("/data/"))
            return Reply({"file": file}, headers={"X-Goog-Upload-Status": "final"})
        if path.startswith("/files/"):
            name = path.removeprefix("/")
            if method == "DELETE":
                self.deleted.append(name)
                return Reply({})
            self.files[name] += 1
            return Reply(self.describe(name))
        assert path == "/models/judge:generateContent"
        return self.answer

    def describe(self, name):
        state = self.state if self.files[name] else "PROCESSING"
        error = {"error": {"message": "unsupported codec", "code": 3}} if state == "FAILED" else {}
        return {"name": name, "uri": f"{self.url}/v1beta/{name}", "mimeType": "video/mp4", "state": state, **error}


def connect(serve, answer, state="ACTIVE", **options):
    google = Google(answer, state)
    server = serve(google)
    google.url = server.url
    return google, server, Gemini(model="judge", url=server.url, poll=0.01, **options).build()


def sent(server):
    return next(body for _, path, body in server.requests if "generateContent" in path)


def test_a_request_holds_the_system_text_images_with_times_the_schema_and_the_seed(serve, request_with_clip):
    _, server, model = connect(serve, Reply(generated()))
    answer = model.answer(request_with_clip)
    assert (answer.text, answer.finish, answer.model) == ("fine", "stop", "gemini-judge-001")
    assert answer.usage == Usage(prompt_tokens=900, answer_tokens=25)
    body = sent(server)
    assert body["systemInstruction"]["parts"][0]["text"] == "Judge the edit."
    settings = body["generationConfig"]
    assert (settings["temperature"], settings["seed"], settings["responseMimeType"]) == (0, 3, "application/json")
    assert settings["responseJsonSchema"] == SCHEMA
    parts = body["contents"][0]["parts"]
    assert [part.get("text", "<image>") for part in parts] == [
        "Reference image:", "<image>", "Edited video:", "0.00 s:", "<image>", "0.50 s:", "<image>",
        "Editing instruction: paint it",
    ]  # fmt: skip
    assert read_image(base64.urlsafe_b64decode(parts[1]["inlineData"]["data"])).mean() == 7
    assert server.headers[0]["x-goog-api-key"] == SECRET


def test_an_uploaded_video_is_awaited_asked_about_and_deleted(serve, request_with_clip):
    google, server, model = connect(serve, Reply(generated()), upload=True)
    assert model.answer(request_with_clip).text == "fine"
    parts = sent(server)["contents"][0]["parts"]
    file = parts[3].get("fileData") or parts[3]["file_data"]  # the API accepts both spellings
    assert sorted(file.values()) == [f"{server.url}/v1beta/files/0", "video/mp4"]
    assert len(parts) == 5  # no frames
    assert google.deleted == ["files/0"]
    assert "uploaded" in model.frames


@pytest.mark.parametrize(
    ("answer", "state", "retryable"),
    [
        (Reply(generated()), "FAILED", False),
        (Reply({"error": {"code": 500, "message": "broken", "status": "INTERNAL"}}, 500), "ACTIVE", True),
    ],
)
def test_an_uploaded_video_is_deleted_after_a_failure_too(serve, request_with_clip, answer, state, retryable):
    google, _, model = connect(serve, answer, state, upload=True)
    with pytest.raises(VlmError) as caught:
        model.answer(request_with_clip)
    assert caught.value.retryable is retryable
    assert google.deleted == ["files/0"]


def test_a_video_that_is_never_processed_is_given_up(serve, request_with_clip):
    google, _, model = connect(serve, Reply(generated()), "PROCESSING", upload=True, timeout=0.5)
    with pytest.raises(VlmError, match="not processed") as caught:
        model.answer(request_with_clip)
    assert caught.value.retryable
    assert google.deleted == ["files/0"]


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("MAX_TOKENS", "length"),
        ("SAFETY", "refused"),
        ("RECITATION", "refused"),
        ("OTHER", "other"),
        ("NEW", "other"),
    ],
)
def test_an_answer_says_why_it_ended(serve, request_with_clip, finish, expected):
    _, _, model = connect(serve, Reply(generated(finish=finish)))
    assert model.answer(request_with_clip).finish == expected


def failure(code, status, message="no", **details):
    return {"error": {"code": code, "status": status, "message": message, "details": [details] if details else []}}


@pytest.mark.parametrize(
    ("reply", "retryable", "wait"),
    [
        (Reply(failure(429, "RESOURCE_EXHAUSTED", retryDelay="17s"), 429), True, 17),
        (Reply(failure(429, "RESOURCE_EXHAUSTED"), 429, {"Retry-After": "3"}), True, 3),
        (Reply(failure(429, "RESOURCE_EXHAUSTED", retryDelay="inf"), 429), True, 600),
        (Reply(failure(429, "RESOURCE_EXHAUSTED", retryDelay="nan"), 429), True, None),
        (Reply(failure(429, "RESOURCE_EXHAUSTED", quotaId="RequestsPerDayPerProject"), 429), False, None),
        (Reply(failure(503, "UNAVAILABLE", "overloaded"), 503), True, None),
        (Reply(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}), True, None),
        (Reply(failure(400, "INVALID_ARGUMENT", f"key {SECRET} not valid"), 400), False, None),
        (Reply(failure(403, "PERMISSION_DENIED"), 403), False, None),
        (Reply(failure(404, "NOT_FOUND", "no such model"), 404), False, None),
        (Reply({"promptFeedback": {"blockReason": "SAFETY"}}), False, None),
        (Reply({}), True, None),
        (Reply(b"not json"), True, None),
    ],
)
def test_a_failure_is_an_error_that_says_whether_to_ask_again(serve, request_with_clip, reply, retryable, wait):
    _, server, model = connect(serve, reply)
    require_failure(server, model, request_with_clip, retryable, wait, SECRET)


def test_a_server_that_does_not_answer_in_time_may_be_asked_again(serve, request_with_clip):
    _, _, model = connect(serve, Reply(generated(), delay=5), timeout=0.3)
    with pytest.raises(VlmError) as caught:
        model.answer(request_with_clip)
    assert caught.value.retryable


def test_a_server_that_is_not_there_may_be_asked_again(request_with_clip):
    with pytest.raises(VlmError) as caught:
        Gemini(model="judge", url="http://127.0.0.1:9").build().answer(request_with_clip)
    assert caught.value.retryable


def test_a_key_is_needed_and_shown_nowhere(monkeypatch):
    assert SECRET not in repr(Gemini(model="judge")) + repr(Gemini(model="judge").build())
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(InputError, check=lambda error: error.code == "missing-key"):
        Gemini(model="judge").build()
