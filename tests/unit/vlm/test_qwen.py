"""A tiny Qwen2.5-VL of random weights with its processor, loaded from a folder and asked."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from kiwi.errors import CheckpointError
from kiwi.models.mllm.new_qwen import NewQwen, _make_config, make_byte_tokenizer
from kiwi.vlm import parse_model
from kiwi.vlm.qwen import Qwen
from kiwi.vlm.request import Request

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "tiny-vl"
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    spec = NewQwen(hidden_size=32, layers=2, vision_layers=1, vision_patch=4)
    model = Qwen2_5_VLForConditionalGeneration(_make_config(spec, tokenizer)).eval()
    model.save_pretrained(folder)
    sizes = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 4096}}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return Qwen(path=str(folder), device="cpu").build()


def prepare(model, request):
    """The inputs of a request by the processor alone."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in request.flatten()
    ]
    system = {"role": "system", "content": [{"type": "text", "text": request.system}]}
    return model._processor.apply_chat_template(
        [system, {"role": "user", "content": parts}],
        tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip


def test_an_answer_is_the_greedy_text_of_the_model(model, folder, request_with_clip):
    request = Request(system="Judge.", parts=request_with_clip.parts, max_tokens=6)
    answer = model.answer(request)
    assert answer == model.answer(request)
    assert (answer.finish, answer.usage.answer_tokens) == ("length", 6)  # random weights do not stop
    assert answer.model.startswith("tiny-vl (")
    reference, inputs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval(), prepare(model, request)
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    with torch.inference_mode():
        first = int(reference(**inputs).logits[0, -1].argmax())
    tokens = model._generate(inputs, request)
    assert tokens[0] == first
    assert answer.text == make_byte_tokenizer().decode(tokens, skip_special_tokens=True)


def test_pixels_and_words_reach_the_model(model):
    images = [np.full((16, 16, 3), value, np.uint8) for value in (0, 255)]
    requests = [Request(system="Judge.", parts=["a", image]) for image in images]
    with torch.inference_mode():
        black, white = (model._model(**prepare(model, request)).logits[0, -1] for request in requests)
    assert not torch.allclose(black, white)
    lengths = [
        model.answer(Request(system="Judge.", parts=[text], max_tokens=1)).usage.prompt_tokens for text in ("a", "bcd")
    ]
    assert lengths[1] == lengths[0] + 2


def test_an_answer_that_reaches_its_stop_token_is_complete(model, monkeypatch):
    request = Request(system="Judge.", parts=["a"], max_tokens=4)
    monkeypatch.setattr(model, "_generate", lambda *_: [65, 66, *model._list_stop_tokens()])
    answer = model.answer(request)
    assert answer.finish == "stop"
    assert "<|im_end|>" not in answer.text


def test_sampling_depends_on_the_seed(model):
    texts = {
        seed: model.answer(Request(system="J", parts=["a"], max_tokens=12, temperature=2.0, seed=seed)).text
        for seed in (0, 1, 0)
    }
    assert texts[0] != texts[1]
    again = model.answer(Request(system="J", parts=["a"], max_tokens=12, temperature=2.0, seed=0)).text
    assert again == texts[0]


@pytest.mark.parametrize("damage", ["empty", "tensor", "template"])
def test_a_folder_that_is_not_a_complete_model_is_rejected(folder, tmp_path, damage):
    broken = shutil.copytree(folder, tmp_path / "broken")
    if damage == "empty":
        shutil.rmtree(broken)
        broken.mkdir()
    elif damage == "tensor":
        tensors = load_file(broken / "model.safetensors")
        del tensors[next(name for name in tensors if "mlp" in name)]
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    else:
        (broken / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError):
        Qwen(path=str(broken), device="cpu").build()


def test_a_missing_folder_is_rejected_before_transformers_looks_for_it(tmp_path):
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
        parse_model(f"qwen:{tmp_path}/nowhere").build()
