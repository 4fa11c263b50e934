"""The shipped models load with kiwi and with transformers alone, and do what they were trained for."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from kiwi import shipped
from kiwi.data.datamodule import EditData
from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.data.sandbox import SandboxQuestions
from kiwi.editing.editor import KiwiEditor
from kiwi.evaluation.fidelity import compute_edit_metrics
from kiwi.evaluation.sandbox_scores import edit_pairs, make_pair_editor, score_item
from kiwi.experiment import read_experiment
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.vae.wan import WanVae
from kiwi.sandbox.pairs import make_controls, make_pair, swap_instruction
from kiwi.sandbox.questions import content_overlap
from kiwi.training.modules.mllm import ANSWER_END, ANSWER_START, LitMllm
from kiwi.weights.hub import locate

TRAINED = Path(__file__).parents[3] / "experiments/sandbox/mllm.yaml"


@pytest.fixture(scope="module")
def reader():
    limits = read_experiment(TRAINED)["model"]["mllm"]["limits"]
    return LitMllm(QwenVL(path="sandbox/mllm", dtype="float32", limits=VisionLimits(**limits)))


@pytest.fixture(scope="module")
def transformers_model():
    """The model and tokenizer as transformers loads them from the folder."""
    folder = locate("sandbox/mllm", "reader", "")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder).tokenizer


def question_batches(count, batch_size, max_frames=5):
    questions = SandboxQuestions(items=count, max_frames=max_frames, split="test")
    data = EditData(train=[questions], multiple=8, batch_size=batch_size, num_workers=0)
    data.setup()
    return islice(data.fresh_train_dataloader(), count // batch_size)  # the training batches never end


@torch.no_grad()
def test_the_autoencoder_reconstructs_held_out_clips():
    vae = WanVae(path="sandbox/vae").build()
    assert (vae.spatial_factor, vae.temporal_factor) == (4, 4)
    psnr = []
    for index in range(14):
        target = make_pair(0, index, frames=5, height=32, width=32, split="test").target
        reconstruction = to_pixels(vae.decode(vae.encode(to_video_tensor(target[None])))[0])
        psnr.append(compute_edit_metrics(reconstruction, target)["psnr"])
    assert np.mean(psnr) > 28


def test_the_reader_answers_better_than_chance(reader):
    overlaps = [
        content_overlap(answer, reference)
        for batch in question_batches(24, batch_size=24)
        for answer, reference in zip(reader.answer(batch), batch.answers, strict=True)
    ]
    assert len(overlaps) == 24
    assert np.mean(overlaps) > 0.6  # the most frequent answer of each task would have 0.18


def model_inputs(prompt):
    """The arguments for a transformers model, made from a prompt."""
    vision = {
        name: value
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        if (value := getattr(prompt, name)) is not None
    }
    text = {"input_ids": prompt.input_ids_BS, "attention_mask": prompt.attention_mask_BS}
    return text | vision | {"mm_token_type_ids": prompt.token_types_BS}


def test_transformers_generates_the_same_answers(reader, transformers_model):
    model, tokenizer = transformers_model
    (end,) = tokenizer.encode(ANSWER_END)
    for batch in question_batches(7, batch_size=1, max_frames=1):
        prompt, _ = reader.append_tokens(reader.format_prompt(batch), [tokenizer.encode(ANSWER_START)])
        tokens = model.generate(**model_inputs(prompt), do_sample=False, max_new_tokens=96, eos_token_id=end)
        answer = tokenizer.decode(tokens[0, prompt.input_ids_BS.shape[1] :], skip_special_tokens=True)
        assert answer.strip() == reader.answer(batch)[0]


@torch.no_grad()
def test_transformers_gives_the_same_logits_for_videos_with_the_same_positions(reader, transformers_model):
    # After a video, transformers continues the positions from the longer side of its grid, kiwi from its end.
    model, tokenizer = transformers_model
    for batch in question_batches(8, batch_size=1):
        prompt, _ = reader.append_tokens(reader.format_prompt(batch), [tokenizer.encode(ANSWER_START)])
        expected = model(**model_inputs(prompt), position_ids=reader.reader.compute_position_ids(prompt)).logits
        logits = reader.compute_logits(prompt, reader.encode_images(prompt))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def overall(editor, pairs):
    """Mean of the oracle's overall scores of the edits of a model."""
    edits = edit_pairs(pairs, make_pair_editor(editor.model, editor.defaults.sampling))
    return np.mean([score_item(pair, edits[pair.id]).overall for pair in pairs])


def held_out_items(count, *categories):
    """Items of the test split at the easy level."""
    size = {"frames": 5, "height": 32, "width": 32}
    return [make_pair(0, index, **size, categories=categories, level="easy", split="test") for index in range(count)]


@pytest.mark.parametrize("name", ["sandbox/stage2", "sandbox"])
def test_the_editors_follow_their_instructions(name):
    editor = KiwiEditor.from_pretrained(name)
    pairs = held_out_items(12, "global_style", "local_remove", "background_change")
    assert overall(editor, pairs) > 3
    assert overall(editor, list(make_controls(pairs, swap_instruction).values())) < 2


def test_the_shipped_files_are_small():
    sizes = [file.stat().st_size for file in shipped.ROOT.rglob("*") if file.is_file()]
    assert sum(sizes) < 40e6
    assert max(sizes) < 16e6
