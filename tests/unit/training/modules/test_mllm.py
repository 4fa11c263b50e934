"""LitMllm: every part of the MLLM is trained, on the tokens of the answers."""

from collections import Counter
from copy import copy

import lightning as L
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.sandbox import SandboxEdits, SandboxQuestions
from kiwi.errors import InputError
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.training.modules.mllm import ANSWER_END, ANSWER_START, Answer, LitMllm, _summarize_answers
from kiwi.training.optim import AdamW

TINY = NewQwen(hidden_size=32, layers=1, vision_layers=1)


def data(*sets, **options):
    data = EditData(train=list(sets), multiple=8, batch_size=4, num_workers=0, **options)
    data.setup()
    return data


def batch_of(**questions):
    return next(iter(data(SandboxQuestions(items=64, **questions)).fresh_train_dataloader()))


def first(batch):
    """The batch with only its first sample."""
    single = copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, (list, torch.Tensor)):
            setattr(single, name, value[:1])
    return single


def test_a_batch_has_questions_and_answers():
    batch = batch_of(tasks=["count", "picture"])
    assert set(batch.categories) <= {"count", "picture"}
    assert all(answer.endswith(".") for answer in batch.answers)
    assert all(len(pictures) == (batch.task == "reference") for pictures in batch.reference_images)
    assert batch.target_BCFHW.shape[2] == 0


def test_answers_follow_their_questions_and_only_they_are_trained_on():
    module, batch = LitMllm(TINY), batch_of(tasks=["repeat"])
    tokenizer, prompt = module.reader.prompter.tokenizer, module.format_prompt(batch)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in ("one", "number two", "3", "")]
    whole, added_BS = module.append_tokens(prompt, rows)
    for index, row in enumerate(rows):
        length = int(prompt.attention_mask_BS[index].sum())
        assert whole.input_ids_BS[index, :length].tolist() == prompt.input_ids_BS[index, :length].tolist()
        assert whole.input_ids_BS[index][added_BS[index]].tolist() == row
        assert int(whole.attention_mask_BS[index].sum()) == length + len(row)
    assert prompt.input_ids_BS.shape[1] < whole.input_ids_BS.shape[1]


def test_every_part_is_trained_and_a_batch_can_be_memorized(tmp_path):
    module, batch = LitMllm(TINY), batch_of(tasks=["count"], max_frames=1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    first = module.compute_loss(batch)
    first.backward()
    untrained = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert not untrained
    for _ in range(100):
        optimizer.zero_grad()
        loss = module.compute_loss(batch)
        loss.backward()
        optimizer.step()
    assert loss < first / 20
    assert module.answer(batch) == batch.answers
    module.export(tmp_path / "mllm", self_contained=True)
    again = LitMllm(QwenVL(path=str(tmp_path / "mllm"), dtype="float32", limits=TINY.limits))
    assert again.answer(batch) == batch.answers
    assert again.is_pretrained
    assert not module.is_pretrained
    halved = LitMllm(QwenVL(path=str(tmp_path / "mllm"), dtype="float32", limits=TINY.limits), export_dtype="float16")
    halved.export(tmp_path / "half", self_contained=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("mllm", "half")]
    assert 1.8 < sizes[0] / sizes[1] < 2.1
    half = LitMllm(QwenVL(path=str(tmp_path / "half"), dtype="float32", limits=TINY.limits))
    assert half.answer(batch) == batch.answers
    assert module.list_unexpected_files(tmp_path / "mllm") == []
    (tmp_path / "mllm" / "note.txt").write_text("user file")
    assert module.list_unexpected_files(tmp_path / "mllm") == ["note.txt"]


def test_the_loss_is_over_the_tokens_of_the_answers_only():
    module, batch = LitMllm(TINY), batch_of(tasks=["count"])
    tokenizer = module.reader.prompter.tokenizer
    with torch.no_grad():
        expected = []
        for index in range(4):
            row = [
                *module._tokenize(ANSWER_START),
                *tokenizer.encode(batch.answers[index]),
                *module._tokenize(ANSWER_END),
            ]
            single = module.reader.prompter(
                [batch.source_frames[index]], [batch.instructions[index]], [()], batch.task, 0
            )
            whole, _ = module.append_tokens(single, [row])
            logits = module.compute_logits(whole, module.encode_images(whole))[0].log_softmax(-1)
            start = single.input_ids_BS.shape[1] + len(module._tokenize(ANSWER_START))
            expected += [
                -logits[position - 1, whole.input_ids_BS[0, position]]
                for position in range(start, whole.input_ids_BS.shape[1])
            ]
        assert float(module.compute_loss(batch)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_validation_scores_answers_beside_those_of_a_blind_guesser():
    answers = [
        Answer("count", "One object.", "One object."),
        Answer("count", "Two objects.", "One object."),
        Answer("move", "Up.", "Down."),
    ]
    training_answers = Counter({("count", "One object."): 5, ("count", "Two objects."): 3, ("move", "Down."): 2})
    assert _summarize_answers(answers, training_answers) == {
        **{"right_count": 0.5, "right_move": 0, "right": 0.25},
        **{"facts_count": 0.5, "facts_move": 0, "facts": 0.25},
        **{"guessed_count": 1, "guessed_move": 1, "guessed": 1},
        **{"guessed_facts_count": 1, "guessed_facts_move": 1, "guessed_facts": 1},
    }


def test_validation_metrics_are_logged(tmp_path):
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=1, val_check_interval=1, num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_checkpointing=False, use_distributed_sampler=False,
        enable_model_summary=False,
    )  # fmt: skip
    questions = data(
        SandboxQuestions(items=8, tasks=["count"], max_frames=1),
        validation=[SandboxQuestions(items=4, tasks=["count"], max_frames=1, split="new_both")],
    )
    trainer.fit(LitMllm(TINY, optim=AdamW(lr=1e-3)), questions)
    assert {"val/loss", "val/right_count", "val/guessed_count", "val/right"} <= trainer.callback_metrics.keys()


def test_a_preview_shows_video_and_picture_with_question_prediction_and_answer():
    module, batch = LitMllm(TINY), batch_of(tasks=["picture"])
    preview = module.preview(first(batch), 0)
    assert preview.caption.split("\n") == [
        batch.instructions[0],
        f"predicted: {module.answer(first(batch))[0]}",
        f"expected: {batch.answers[0]}",
    ]
    shapes = {name: clip.shape for name, clip in preview.clips.items()}
    assert shapes == {"video": (5, 32, 32, 3), "picture": (1, 32, 32, 3)}
    assert module.preview(first(batch_of(tasks=["count"])), 0).clips.keys() == {"video"}


def test_batches_of_edits_are_rejected():
    edits = next(iter(data(SandboxEdits(items=4)).fresh_train_dataloader()))
    with pytest.raises(InputError, check=lambda error: error.code == "missing-answer"):
        LitMllm(TINY).compute_loss(edits)
