"""LitMllm: answers are learned, token by token, by every part of the reader."""

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
from kiwi.training.modules.mllm import ANSWER, END, LitMllm, _summary
from kiwi.training.optim import AdamW

TINY = NewQwen(hidden_size=32, layers=1, vision_layers=1)


def data(*sets, **more):
    found = EditData(train=list(sets), multiple=8, batch_size=4, num_workers=0, **more)
    found.setup()
    return found


def batch_of(**questions):
    return next(iter(data(SandboxQuestions(items=64, **questions)).fresh_train_dataloader()))


def first(batch):
    """A batch of its first sample alone."""
    found = copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, (list, torch.Tensor)):
            setattr(found, name, value[:1])
    return found


def test_a_batch_asks_and_knows_the_answers():
    batch = batch_of(tasks=["count", "picture"])
    assert set(batch.categories) <= {"count", "picture"}
    assert all(answer.endswith(".") for answer in batch.answers)
    assert all(len(pictures) == (batch.task == "reference") for pictures in batch.reference_images)
    assert batch.target_BCFHW.shape[2] == 0


def test_answers_stand_behind_their_questions_and_nothing_else_is_learned():
    module, batch = LitMllm(TINY), batch_of(tasks=["repeat"])
    tokenizer, prompt = module.reader.prompter.tokenizer, module.prompt(batch)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in ("one", "number two", "3", "")]
    whole, added_BS = module.continued(prompt, rows)
    for index, row in enumerate(rows):
        length = int(prompt.attention_mask_BS[index].sum())
        assert whole.input_ids_BS[index, :length].tolist() == prompt.input_ids_BS[index, :length].tolist()
        assert whole.input_ids_BS[index][added_BS[index]].tolist() == row
        assert int(whole.attention_mask_BS[index].sum()) == length + len(row)
    assert prompt.input_ids_BS.shape[1] < whole.input_ids_BS.shape[1]


def test_every_part_learns_and_what_is_said_follows(tmp_path):
    """Of one batch, until it is known by heart."""
    module, batch = LitMllm(TINY), batch_of(tasks=["count"], max_frames=1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    first = module._loss(batch)
    first.backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert not without
    for _ in range(100):
        optimizer.zero_grad()
        loss = module._loss(batch)
        loss.backward()
        optimizer.step()
    assert loss < first / 20
    assert module.answer(batch) == batch.answers
    module.export(tmp_path / "mllm", 5, self_contained=True)
    again = LitMllm(QwenVL(path=str(tmp_path / "mllm"), dtype="float32", limits=TINY.limits))
    assert again.answer(batch) == batch.answers
    assert again.trained
    assert not module.trained
    halved = LitMllm(QwenVL(path=str(tmp_path / "mllm"), dtype="float32", limits=TINY.limits), export_dtype="float16")
    halved.export(tmp_path / "half", 5, self_contained=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("mllm", "half")]
    assert 1.8 < sizes[0] / sizes[1] < 2.1
    half = LitMllm(QwenVL(path=str(tmp_path / "half"), dtype="float32", limits=TINY.limits))
    assert half.answer(batch) == batch.answers
    assert module.foreign(tmp_path / "mllm") == []
    (tmp_path / "mllm" / "note.txt").write_text("mine")
    assert module.foreign(tmp_path / "mllm") == ["note.txt"]


def test_the_loss_is_that_of_the_answers_tokens_alone():
    module, batch = LitMllm(TINY), batch_of(tasks=["count"])
    tokenizer = module.reader.prompter.tokenizer
    with torch.no_grad():
        expected = []
        for index in range(4):
            row = [*module._ids(ANSWER), *tokenizer.encode(batch.answers[index]), *module._ids(END)]
            one = module.reader.prompter([batch.source_frames[index]], [batch.instructions[index]], [()], batch.task, 0)
            whole, _ = module.continued(one, [row])
            logits = module.logits(whole, module.see(whole))[0].log_softmax(-1)
            start = one.input_ids_BS.shape[1] + len(module._ids(ANSWER))
            expected += [-logits[at - 1, whole.input_ids_BS[0, at]] for at in range(start, whole.input_ids_BS.shape[1])]
        assert float(module._loss(batch)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_validation_tells_right_answers_beside_a_blind_guessers():
    told = [("count", "One object.", "One object."), ("count", "Two objects.", "One object."), ("move", "Up.", "Down.")]
    answered = Counter({("count", "One object."): 5, ("count", "Two objects."): 3, ("move", "Down."): 2})
    assert _summary(told, answered) == {
        **{"right_count": 0.5, "right_move": 0, "right": 0.25},
        **{"facts_count": 0.5, "facts_move": 0, "facts": 0.25},
        **{"guessed_count": 1, "guessed_move": 1, "guessed": 1},
        **{"guessed_facts_count": 1, "guessed_facts_move": 1, "guessed_facts": 1},
    }


def test_a_run_logs_them(tmp_path):
    off = ("logger", "enable_progress_bar", "enable_checkpointing", "use_distributed_sampler", "enable_model_summary")
    options = {"max_steps": 1, "val_check_interval": 1, "num_sanity_val_steps": 0, **dict.fromkeys(off, False)}
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", **options)
    asked = data(
        SandboxQuestions(items=8, tasks=["count"], max_frames=1),
        validation=[SandboxQuestions(items=4, tasks=["count"], max_frames=1, split="new_both")],
    )
    trainer.fit(LitMllm(TINY, optim=AdamW(lr=1e-3)), asked)
    assert {"val/loss", "val/right_count", "val/guessed_count", "val/right"} <= trainer.callback_metrics.keys()


def test_a_preview_shows_what_is_asked_about_and_tells_what_is_said():
    module, batch = LitMllm(TINY), batch_of(tasks=["picture"])
    question, said, right = module.caption(one := first(batch)).split("\n")
    assert (question, said, right) == (
        batch.instructions[0],
        f"said: {module.answer(one)[0]}",
        f"right: {batch.answers[0]}",
    )
    assert {name: clip.shape for name, clip in module.preview(one, 0).items()} == {
        "video": (5, 32, 32, 3),
        "picture": (1, 32, 32, 3),
    }
    assert module.preview(first(batch_of(tasks=["count"])), 0).keys() == {"video"}


def test_edits_are_no_questions():
    edits = next(iter(data(SandboxEdits(items=4)).fresh_train_dataloader()))
    with pytest.raises(InputError, match=r"Questions in data\.train"):
        LitMllm(TINY)._loss(edits)
