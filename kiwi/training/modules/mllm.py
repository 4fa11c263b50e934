"""LitMllm: a small reader learns to see and to remember, by answering questions about the world.

What an editor freezes has to be worth reading. Next-token loss on the answers alone, through a head that is the word
embeddings, as small Qwen-VLs have it. B samples, S tokens, M the MLLM's width, W words of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch, pixels
from kiwi.errors import InputError
from kiwi.keyed import forked_rng
from kiwi.media.files import atomic_folder
from kiwi.models.mllm.encoder import MllmEncoder, MllmSpec
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.prefix_cache import full_forward
from kiwi.models.mllm.prompting import Prompt
from kiwi.models.mllm.vision import PromptVisionFeatures, encode_vision
from kiwi.models.sampling import eval_mode
from kiwi.sandbox.questions import content_overlap
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import Clips, LitModule
from kiwi.training.optim import AdamW, OptimSpec

ANSWER, END = "<|im_start|>assistant\n", "<|im_end|>"
"""What stands before and after an answer, in Qwen's chats."""

LONGEST = 96
"""Tokens that an answer is decoded to at most."""

GUESSED_FROM = 512
"""Training's answers that the blind guesser knows."""

_FILES = {"config.json", "prompt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
_FILES |= {"preprocessor_config.json", "added_tokens.json", "chat_template.jinja", "generation_config.json"}


class LitMllm(LitModule):
    """Trains all of an MLLM, vision tower included, on questions (`Questions` in data.train) and their answers.

    Validation decodes greedily and tells by task the share of answers that are right to the last word,
    `val/right_TASK`, and the share of their facts (`content_overlap`), `val/facts_TASK`; beside them what always giving
    the task's most frequent answer would be worth, `val/guessed_TASK` and `val/guessed_facts_TASK`.

    The folder it exports is transformers' format, as `QwenVL(path=folder)` needs it.

    Args:
        mllm: the reader; `NewQwen(...)` trains one from nothing.
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated and exported.
        export_dtype: of the weights in the exported folder; float16 halves it.
        max_pixels: not used by a reader; the command line sets it for every module.
        seed: of initial weights.
    """

    def __init__(
        self,
        mllm: MllmSpec = NewQwen(),  # noqa: B008  (frozen)
        optim: OptimSpec = AdamW(lr=1e-3, warmup_steps=100, schedule="cosine"),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        export_dtype: Literal["float32", "float16"] = "float32",
        max_pixels: int = 720 * 1280,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed)
        with forked_rng(seed, "mllm"):
            self.reader: MllmEncoder = mllm.build()
        self.reader.model.requires_grad_(True)
        self.export_dtype = getattr(torch, export_dtype)
        self.answered: Counter[tuple[str, str]] = Counter()
        """Training's answers, by task."""
        self.told: list[tuple[str, str, str]] = []
        """Of this validation: task, what was said, what is right."""

    @property
    def size_multiple(self) -> int:
        return 8  # frames are resized for the reader anyway

    @property
    def trained(self) -> bool:
        return bool(self.reader.fingerprint)

    def on_fit_start(self) -> None:
        """Refuse a cache, which has no pixels, and data without answers."""
        data = cast(EditData, self.trainer.datamodule)  # type: ignore[attr-defined]
        if data.cache is not None:
            raise InputError(
                "a reader is trained on pixels", got=f"data.cache {data.cache}", fix="leave data.cache out"
            )

    def choices(self) -> dict[str, Any]:
        return {}

    def is_saved(self, name: str) -> bool:
        return True

    # --- reading and answering --------------------------------------------------------------------------

    def prompt(self, batch: EditBatch) -> Prompt:
        """The questions, in the words that an editor's instructions stand in."""
        prompter = self.reader.prompter
        return prompter(batch.source_frames, batch.instructions, batch.reference_images, batch.task, 0).to(self.device)

    def see(self, prompt: Prompt) -> PromptVisionFeatures:
        """As the reader's `vision_features`, with gradients."""
        tower = self.reader.model.visual
        images = encode_vision(tower, prompt.pixel_values, prompt.image_grid_thw)
        return PromptVisionFeatures(images, encode_vision(tower, prompt.pixel_values_videos, prompt.video_grid_thw))

    def logits(self, prompt: Prompt, vision: PromptVisionFeatures) -> Tensor:
        """Of the token after each, (B, S, W)."""
        model = self.reader.model
        nothing = torch.zeros(0, self.reader.hidden_size, device=self.device)
        states = full_forward(model.language_model, self.reader.embed(prompt, vision, nothing), (-1,))[-1]
        return F.linear(states, model.get_input_embeddings().weight)

    def continued(self, prompt: Prompt, rows: Sequence[Sequence[int]]) -> tuple[Prompt, Tensor]:
        """Each sample with more tokens behind its last, and where those stand (B, S)."""
        lengths = prompt.attention_mask_BS.sum(dim=1).tolist()
        total = max(length + len(row) for length, row in zip(lengths, rows, strict=True))
        padding = (0, total - prompt.input_ids_BS.shape[1])
        fields = ("input_ids_BS", "attention_mask_BS", "queries_BS", "references_BS", "token_types_BS")
        wider: dict[str, Any] = {name: F.pad(getattr(prompt, name), padding) for name in fields}
        added_BS = torch.zeros_like(wider["queries_BS"])
        for index, (length, row) in enumerate(zip(lengths, rows, strict=True)):
            end = length + len(row)
            wider["input_ids_BS"][index, length:end] = torch.tensor(row, device=self.device)
            wider["attention_mask_BS"][index, length:end] = 1
            added_BS[index, length:end] = True
        return replace(prompt, **wider), added_BS

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Mean loss over the answers' tokens."""
        loss = self._loss(batch)
        self.require_finite(loss, "the loss")
        self.record("loss", self.all_gather(loss.detach()).mean(), prog_bar=True, batch_size=len(batch.ids))
        return loss

    def _loss(self, batch: EditBatch) -> Tensor:
        if not all(batch.answers):
            raise InputError("a reader learns from questions", got=batch.ids[0], wanted="Questions in data.train")
        tokenizer, prompt = self.reader.prompter.tokenizer, self.prompt(batch)
        opened, _ = self.continued(prompt, [self._ids(ANSWER)] * len(batch.ids))
        answers = [tokenizer.encode(answer, add_special_tokens=False) + self._ids(END) for answer in batch.answers]
        whole, answer_BS = self.continued(opened, answers)
        logits = self.logits(whole, self.see(whole))
        return F.cross_entropy(logits[:, :-1][answer_BS[:, 1:]].float(), whole.input_ids_BS[:, 1:][answer_BS[:, 1:]])

    @torch.no_grad()
    def answer(self, batch: EditBatch) -> list[str]:
        """What the reader says to a batch's questions, the likeliest token each time."""
        prompt, _ = self.continued(self.prompt(batch), [self._ids(ANSWER)] * len(batch.ids))
        vision, (end,) = self.see(prompt), self._ids(END)
        said: list[list[int]] = [[] for _ in batch.ids]
        for _ in range(LONGEST):
            if all(row[-1:] == [end] for row in said):
                break
            spoken, _ = self.continued(prompt, said)
            last_B = spoken.attention_mask_BS.sum(dim=1) - 1
            next_B = self.logits(spoken, vision)[torch.arange(len(said), device=self.device), last_B].argmax(dim=-1)
            for row, token in zip(said, next_B.tolist(), strict=True):
                row += [] if row[-1:] == [end] else [token]
        tokenizer = self.reader.prompter.tokenizer
        return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in said]

    def _ids(self, text: str) -> list[int]:
        return list(self.reader.prompter.tokenizer.encode(text, add_special_tokens=False))

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; the blind guesser learns training's answers once."""
        super().on_validation_epoch_start()
        self.told = []
        if not self.answered:
            data = cast(EditData, self.trainer.datamodule)  # type: ignore[attr-defined]
            batches = -(-GUESSED_FROM // data.batch_size)
            for batch in islice(data.fresh_train_dataloader(), batches):
                self.answered.update(zip(batch.categories, batch.answers, strict=True))

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """The loss, and what is said."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch.ids), prog_bar=True, sync_dist=True)
        self.told += zip(batch.categories, self.answer(batch), batch.answers, strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log the shares of right answers, of this process's samples and all others'."""
        super().on_validation_epoch_end()
        for name, value in _summary(self.told, self.answered).items():
            self.log(f"val/{name}", value, sync_dist=True)

    # --- what the commands and callbacks ask for --------------------------------------------------------

    def foreign(self, folder: Path) -> list[str]:
        names = [item.name for item in folder.iterdir()]
        if not (folder / "config.json").is_file():
            return sorted(names)
        return sorted(
            name for name in names if name not in _FILES and not name.endswith((".safetensors", ".index.json"))
        )

    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        with atomic_folder(folder, self.foreign) as new:
            self.reader.save(new, self.export_dtype)

    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """What is asked about: the video, and the picture where there is one."""
        pictures = (
            {"picture": pixels(batch.references_BRCHW[0, :1].transpose(0, 1))} if batch.reference_images[0] else {}
        )
        return {"video": pixels(batch.source_BCFHW[0])} | pictures

    def caption(self, batch: EditBatch) -> str:
        """The question, what is said, and what is right."""
        with eval_mode(self):
            (said,) = self.answer(batch)
        return f"{batch.instructions[0]}\nsaid: {said}\nright: {batch.answers[0]}"


def _summary(told: Iterable[tuple[str, str, str]], answered: Counter[tuple[str, str]]) -> dict[str, float]:
    """What is right and what would be guessed, whole answers and facts, by task and over all tasks alike."""
    usual = {task: answer for (task, answer), _ in reversed(answered.most_common())}
    shares: dict[str, dict[str, list[float]]] = {}
    for task, said, wanted in told:
        guess = usual.get(task, "")
        values = (said == wanted, content_overlap(said, wanted), guess == wanted, content_overlap(guess, wanted))
        for name, value in zip(("right", "facts", "guessed", "guessed_facts"), values, strict=True):
            shares.setdefault(name, {}).setdefault(task, []).append(float(value))
    found: dict[str, float] = {}
    for name, tasks in shares.items():
        means = {task: sum(values) / len(values) for task, values in sorted(tasks.items())}
        found |= {f"{name}_{task}": mean for task, mean in means.items()}
        found[name] = sum(means.values()) / len(means)
    return found
