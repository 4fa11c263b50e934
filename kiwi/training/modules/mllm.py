"""LitMllm: trains a small MLLM to answer questions about the sandbox; editors then use it frozen.

The loss is next-token prediction on the answers only, with an output head tied to the word embeddings, as in small
Qwen-VL models. B samples, S tokens, W vocabulary size.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kiwi.data.sample import EditBatch, to_pixels
from kiwi.errors import InputError
from kiwi.keyed import forked_rng
from kiwi.models.mllm.encoder import MllmEncoder, MllmSpec
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.prefix_cache import full_forward
from kiwi.models.mllm.prompting import Prompt
from kiwi.models.mllm.vision import PromptVisionFeatures, encode_vision
from kiwi.models.sampling import eval_mode
from kiwi.sandbox.questions import content_overlap
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import LitEncoder, Preview, get_edit_data
from kiwi.training.optim import AdamW, OptimSpec

ANSWER_START, ANSWER_END = "<|im_start|>assistant\n", "<|im_end|>"
"""The tokens around an answer in Qwen's chat format."""

MAX_ANSWER_TOKENS = 96
"""Maximum number of tokens of a generated answer."""

BLIND_ANSWERS = 512
"""Number of training answers from which the blind baseline takes the most frequent one of each task."""

_EXPORTED_FILES = {"config.json", "prompt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
_EXPORTED_FILES |= {"preprocessor_config.json", "added_tokens.json", "chat_template.jinja", "generation_config.json"}


class Answer(NamedTuple):
    """A generated answer of validation, with the expected one."""

    task: str
    predicted: str
    expected: str


class LitMllm(LitEncoder):
    """Trains a whole MLLM, including its vision tower, on questions and answers (`SandboxQuestions` in data.train).

    Validation decodes greedily. For each task it logs the fraction of exactly matching answers, `val/right_TASK`, and
    the fraction of their content that is correct (`content_overlap`), `val/facts_TASK`. `val/guessed_TASK` and
    `val/guessed_facts_TASK` are the same for a blind baseline that always gives the task's most frequent answer.

    The exported folder has the format of transformers, which `QwenVL(path=folder)` loads.

    Args:
        mllm: the MLLM; `NewQwen(...)` trains one from scratch.
        optim: optimizer and schedule.
        averaging: weight averaging; validation and exports use the average.
        export_dtype: data type of the weights in the exported folder; float16 halves its size.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        mllm: MllmSpec = NewQwen(),  # noqa: B008  (frozen)
        optim: OptimSpec = AdamW(lr=1e-3, warmup_steps=100, schedule="cosine"),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        export_dtype: Literal["float32", "float16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, export_dtype, seed)
        with forked_rng(seed, "mllm"):
            self.reader: MllmEncoder = mllm.build()
        self.reader.model.requires_grad_(True)
        self.training_answers: Counter[tuple[str, str]] = Counter()
        """Number of training answers by task and answer."""
        self.answers: list[Answer] = []
        """Answers of the current validation run."""

    size_multiple = 8  # any value works, because the MLLM resizes frames

    @property
    def encoder(self) -> MllmEncoder:
        return self.reader

    # --- training and generation ----------------------------------------------------------------------

    def format_prompt(self, batch: EditBatch) -> Prompt:
        """Format the questions like an editor's instructions."""
        prompter = self.reader.prompter
        return prompter(batch.source_frames, batch.instructions, batch.reference_images, batch.task, 0).to(self.device)

    def encode_images(self, prompt: Prompt) -> PromptVisionFeatures:
        """Encode the images and videos of a prompt as the MLLM does, but with gradients."""
        tower = self.reader.model.visual
        images = encode_vision(tower, prompt.pixel_values, prompt.image_grid_thw)
        return PromptVisionFeatures(images, encode_vision(tower, prompt.pixel_values_videos, prompt.video_grid_thw))

    def compute_logits(self, prompt: Prompt, vision: PromptVisionFeatures) -> Tensor:
        """Logits of the next token after each position, (B, S, W)."""
        model = self.reader.model
        no_queries = torch.zeros(0, self.reader.hidden_size, device=self.device)
        states = full_forward(model.language_model, self.reader.embed(prompt, vision, no_queries), (-1,))[-1]
        return F.linear(states, model.get_input_embeddings().weight)

    def append_tokens(self, prompt: Prompt, token_ids: Sequence[Sequence[int]]) -> tuple[Prompt, Tensor]:
        """Append tokens to each sample of a prompt; also return a mask of the appended tokens (B, S)."""
        lengths = prompt.attention_mask_BS.sum(dim=1).tolist()
        total = max(length + len(ids) for length, ids in zip(lengths, token_ids, strict=True))
        padding = (0, total - prompt.input_ids_BS.shape[1])
        fields = ("input_ids_BS", "attention_mask_BS", "queries_BS", "references_BS", "token_types_BS")
        padded: dict[str, Any] = {name: F.pad(getattr(prompt, name), padding) for name in fields}
        added_BS = torch.zeros_like(padded["queries_BS"])
        for index, (length, ids) in enumerate(zip(lengths, token_ids, strict=True)):
            end = length + len(ids)
            padded["input_ids_BS"][index, length:end] = torch.tensor(ids, device=self.device)
            padded["attention_mask_BS"][index, length:end] = 1
            added_BS[index, length:end] = True
        return replace(prompt, **padded), added_BS

    def compute_loss(self, batch: EditBatch) -> Tensor:
        """Compute the mean loss over the tokens of the answers."""
        if not all(batch.answers):
            expected = "only SandboxQuestions in data.train"
            raise InputError(f"the sample {batch.ids[0]} is not a question", code="missing-answer", expected=expected)
        prefix, _ = self.append_tokens(self.format_prompt(batch), [self._tokenize(ANSWER_START)] * len(batch.ids))
        answers = [self._tokenize(answer) + self._tokenize(ANSWER_END) for answer in batch.answers]
        answered, answer_BS = self.append_tokens(prefix, answers)
        logits = self.compute_logits(answered, self.encode_images(answered))
        labels = answered.input_ids_BS[:, 1:][answer_BS[:, 1:]]
        return F.cross_entropy(logits[:, :-1][answer_BS[:, 1:]].float(), labels)

    @torch.no_grad()
    def answer(self, batch: EditBatch) -> list[str]:
        """Answer a batch's questions by greedy decoding."""
        prompt, _ = self.append_tokens(self.format_prompt(batch), [self._tokenize(ANSWER_START)] * len(batch.ids))
        vision, (end,) = self.encode_images(prompt), self._tokenize(ANSWER_END)
        generated: list[list[int]] = [[] for _ in batch.ids]
        for _ in range(MAX_ANSWER_TOKENS):
            if all(ids[-1:] == [end] for ids in generated):
                break
            context, _ = self.append_tokens(prompt, generated)
            last_B = context.attention_mask_BS.sum(dim=1) - 1
            samples_B = torch.arange(len(generated), device=self.device)
            next_B = self.compute_logits(context, vision)[samples_B, last_B].argmax(dim=-1)
            for ids, token in zip(generated, next_B.tolist(), strict=True):
                ids += [] if ids[-1:] == [end] else [token]
        tokenizer = self.reader.prompter.tokenizer
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generated]

    def _tokenize(self, text: str) -> list[int]:
        return list(self.reader.prompter.tokenizer.encode(text, add_special_tokens=False))

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Clear the answers of the last validation; count the answers of the training data once per run."""
        super().on_validation_epoch_start()
        self.answers = []
        if not self.training_answers:
            data = get_edit_data(self.trainer)
            for batch in islice(data.fresh_train_dataloader(), -(-BLIND_ANSWERS // data.batch_size)):
                self.training_answers.update(zip(batch.categories, batch.answers, strict=True))

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Log the loss, and generate answers."""
        self.log("val/loss", self.compute_loss(batch), batch_size=len(batch.ids), prog_bar=True, sync_dist=True)
        self.answers += map(Answer, batch.categories, self.answer(batch), batch.answers)

    def on_validation_epoch_end(self) -> None:
        """Log the fractions of correct answers, averaged over all processes."""
        super().on_validation_epoch_end()
        for name, value in _summarize_answers(self.answers, self.training_answers).items():
            self.log(f"val/{name}", value, sync_dist=True)

    # --- for commands and callbacks -------------------------------------------------------------------

    def list_unexpected_files(self, folder: Path) -> list[str]:
        names = sorted(item.name for item in folder.iterdir())
        if "config.json" not in names:
            return names
        weights = (".safetensors", ".index.json")
        return [name for name in names if name not in _EXPORTED_FILES and not name.endswith(weights)]

    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Answer the question; clips are the video and the picture (if there is one), the caption has all texts."""
        clips = {"video": to_pixels(batch.source_BCFHW[0])}
        if batch.reference_images[0]:
            clips["picture"] = to_pixels(batch.references_BRCHW[0, :1].transpose(0, 1))
        with eval_mode(self):
            (predicted,) = self.answer(batch)
        return Preview(clips, f"{batch.instructions[0]}\npredicted: {predicted}\nexpected: {batch.answers[0]}")


def _summarize_answers(answers: Iterable[Answer], training_answers: Counter[tuple[str, str]]) -> dict[str, float]:
    """Mean scores of the MLLM's answers, and of the most frequent training answers, by task and over tasks."""
    most_frequent = {task: answer for (task, answer), _ in reversed(training_answers.most_common())}
    scores: dict[str, dict[str, list[float]]] = {}
    for task, predicted, expected in answers:
        guess = most_frequent.get(task, "")
        values = {
            "right": predicted == expected,
            "facts": content_overlap(predicted, expected),
            "guessed": guess == expected,
            "guessed_facts": content_overlap(guess, expected),
        }
        for name, value in values.items():
            scores.setdefault(name, {}).setdefault(task, []).append(float(value))
    summary: dict[str, float] = {}
    for name, tasks in scores.items():
        means = {task: sum(values) / len(values) for task, values in sorted(tasks.items())}
        summary |= {f"{name}_{task}": mean for task, mean in means.items()}
        summary[name] = sum(means.values()) / len(means)
    return summary
