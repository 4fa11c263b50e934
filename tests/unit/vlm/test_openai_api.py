"""The client against a loopback server that speaks OpenAI's protocol, in success and in failure."""

import base64
import time

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.media.image import read_image
from kiwi.vlm import parse_model
from kiwi.vlm.openai_api import OpenAIModel
from kiwi.vlm.request import Usage, VlmError
from tests.loopback import Reply
from tests.unit.vlm.conftest import SCHEMA, require_failure

SECRET = "sk-very-secret-key-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def completion(content="fine", finish="stop", **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 120, "completion_tokens": 7, "total_tokens": 127}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-2026",
        "choices": [choice],
        "usage": usage,
    }


def connect(serve, reply, **options):
    server = serve(lambda *_: reply)
    return server, OpenAIModel(model="judge", url=f"{server.url}/v1", **options).build()


def test_a_request_holds_the_system_text_images_with_times_the_schema_and_the_seed(serve, request_with_clip):
    server, model = connect(serve, Reply(completion()))
    answer = model.answer(request_with_clip)
    assert (answer.text, answer.finish, answer.model) == ("fine", "stop", "judge-2026")
    assert answer.usage == Usage(prompt_tokens=120, answer_tokens=7)
    ((method, path, body),) = server.requests
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert (body["model"], body["temperature"], body["seed"]) == ("judge", 0.0, 3)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Judge the edit."}
    texts = [part["text"] if part["type"] == "text" else "<image>" for part in user["content"]]
    assert texts == [
        "Reference image:", "<image>", "Edited video:", "0.00 s:", "<image>", "0.50 s:", "<image>",
        "Editing instruction: paint it",
    ]  # fmt: skip
    images = [part["image_url"]["url"] for part in user["content"] if part["type"] == "image_url"]
    decoded = [read_image(base64.b64decode(url.removeprefix("data:image/png;base64,"))) for url in images]
    frames = request_with_clip.parts[3].clip.frames_FHWC
    assert all(np.array_equal(*pair) for pair in zip(decoded, [request_with_clip.parts[1], *frames], strict=True))


def test_servers_without_structured_output_are_sent_no_schema(serve, request_with_clip):
    server, model = connect(serve, Reply(completion()), structured=False)
    model.answer(request_with_clip)
    assert "response_format" not in server.requests[0][2]
    assert not model.has_structured_output


def test_images_are_sent_as_jpeg_if_asked_for(serve, request_with_clip):
    server, model = connect(serve, Reply(completion()), image_format="jpeg")
    model.answer(request_with_clip)
    ((_, _, body),) = server.requests
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    assert data.startswith(b"\xff\xd8")
    assert read_image(data).mean() == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("finish", "expected"), [("length", "length"), ("content_filter", "refused"), ("tool_calls", "other")]
)
def test_an_answer_says_why_it_ended(serve, request_with_clip, finish, expected):
    _, model = connect(serve, Reply(completion(finish=finish)))
    assert model.answer(request_with_clip).finish == expected


@pytest.mark.parametrize(
    ("reply", "retryable", "wait"),
    [
        (Reply({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, {"Retry-After": "7"}), True, 7),
        (
            Reply({"error": {"message": "pay first", "code": "insufficient_quota"}}, 429, {"Retry-After": "7"}),
            False,
            None,
        ),
        (Reply({"error": {"message": "broken"}}, 500), True, None),
        (Reply(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}), True, None),
        (Reply({"error": {"message": f"wrong key {SECRET}"}}, 401), False, None),
        (Reply({"error": {"message": "too many images"}}, 400), False, None),
        *((Reply({"error": {"message": "later"}}, status), True, None) for status in (408, 409, 425)),
        (Reply({"error": {"message": 10_000 * "long "}}, 503, {"Retry-After": "99999"}), True, 600),
        (Reply({"error": {"message": "soon"}}, 503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), True, 0),
        (Reply({"error": {"message": "no such model"}}, 404), False, None),
        (Reply(b"not json"), True, None),
        (Reply({"choices": []}), True, None),
        (Reply([1, 2]), True, None),
        (Reply(b"", 307, {"Location": "http://127.0.0.1:9/elsewhere"}), False, None),
        (Reply(b'"' + 11_000_000 * b"x" + b'"'), False, None),
        (Reply(completion(content=[1])), True, None),
        (Reply(b"\xff\xfe"), True, None),
    ],
)
def test_a_failure_is_an_error_that_says_whether_to_ask_again(serve, request_with_clip, reply, retryable, wait):
    server, model = connect(serve, reply)
    require_failure(server, model, request_with_clip, retryable, wait, SECRET)


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (completion(content=None, finish="length"), "", "length"),  # all tokens went into reasoning
        (completion(content=None, refusal="I cannot judge people."), "I cannot judge people.", "refused"),
    ],
)
def test_an_answer_without_text_keeps_its_tokens(serve, request_with_clip, reply, text, finish):
    _, model = connect(serve, Reply(reply))
    answer = model.answer(request_with_clip)
    assert (answer.text, answer.finish, answer.usage.prompt_tokens) == (text, finish, 120)


@pytest.mark.parametrize("count", ["7", -1, 1e30, 7.5, None, True, [7]])
def test_tokens_that_are_not_numbers_of_tokens_are_unknown(serve, request_with_clip, count):
    usage = {"prompt_tokens": 120, "completion_tokens": count, "total_tokens": 0}
    _, model = connect(serve, Reply(completion() | {"usage": usage}))
    assert model.answer(request_with_clip).usage is None


def test_a_server_that_sends_its_answer_slowly_is_given_up_in_time(serve, request_with_clip):
    _, model = connect(serve, Reply(completion(), pause=0.1), timeout=0.5)
    start = time.monotonic()
    with pytest.raises(VlmError, match=r"within 0\.5 s"):
        model.answer(request_with_clip)
    assert time.monotonic() - start < 5


def test_a_server_that_does_not_answer_in_time_may_be_asked_again(serve, request_with_clip):
    _, model = connect(serve, Reply(completion(), delay=5), timeout=0.2)
    with pytest.raises(VlmError, match=r"within 0\.2 s") as caught:
        model.answer(request_with_clip)
    assert caught.value.retryable


def test_a_server_that_is_not_there_may_be_asked_again(request_with_clip):
    with pytest.raises(VlmError, match=r"127\.0\.0\.1:9") as caught:
        OpenAIModel(model="judge", url="http://127.0.0.1:9/v1").build().answer(request_with_clip)
    assert caught.value.retryable


def test_the_key_is_sent_and_shown_nowhere(serve, request_with_clip):
    server, model = connect(serve, Reply(completion()))
    model.answer(request_with_clip)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    spec = parse_model(f"openai:judge@{server.url}/v1")
    assert SECRET not in repr(spec) + repr(model) + model.name


@pytest.mark.parametrize("value", ["sk-one\nsk-two", "sk one", "schlüssel"])
def test_a_value_that_is_not_a_key_is_refused_without_showing_it(monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-key") as caught:
        OpenAIModel(model="gpt").build()
    assert value not in str(caught.value)


def test_only_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert OpenAIModel(model="judge", url="http://127.0.0.1:9/v1").build().name == "openai:judge@127.0.0.1:9"
    with pytest.raises(InputError, check=lambda error: error.code == "missing-key"):
        OpenAIModel(model="gpt").build()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://user:key@host/v1",
        "http://host/v1?key=1",
        "",
        "http://[::1",
        "http://host/v1\n",
        "http://host:99999/v1",
        "http://a b/",
    ],
)
def test_an_address_that_is_none_or_holds_secrets_is_rejected(url):
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-url"):
        OpenAIModel(model="judge", url=url)


@pytest.mark.parametrize("text", ["openai:", "openai:@http://host/v1", "gemini:", "openai:model@"])
def test_a_name_without_a_model_is_rejected(text):
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-option"):
        parse_model(text)
