"""Two grammars of replies: talk around right scores never takes them away, and mangled replies never give wrong ones.

`python -m tests.unit.bench.test_reply_grammar SEED` prints the errors of another seed.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence

from kiwi.bench.reply import Unscored, read_reply

COUNT = 2000
NAMES = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
OTHER_NAME = "Identity Consistency & Compliance"
SCORES = ("1", "2", "3", "4", "5", "1.5", "2.25", "3.5", "4.9")
Reply = tuple[str, list[list[str]]]
"""A reply, and the scores that it may give; no scores are always accepted from a mangled reply."""

SUBJECTS = (
    "the cat", "the second person", "the sky", "the 9/16 video", "the edited clip", 'the text "24/7"',
    "one of the birds", "frame 7", "the 4K clip", "every frame of the 3-second clip",
)  # fmt: skip
VERBS = ("flickers", "is recoloured as asked", "stays where it was", "drifts a little", "moves", "is slightly blurred")
WHEN = (
    "from 0 to 2 s", "in 2 out of 10 frames", "between seconds 1 and 3", "at 0:04", "for about 1.5 seconds",
    "in 12 of 81 frames", "in the first half", "by some 10 pixels", "at 16 fps", "in 50% of the frames",
)  # fmt: skip
PRAISE = (
    "I could not see any flicker.", "I cannot see any video noise.", "I couldn't see a single image artefact.",
    "No frame is damaged.", "I was unable to see any frame that differs.", "Both clips have 81 frames.",
    "It was asked for 5 balloons; 5 are there.", 'The instruction says "make it 10 times larger".', "Great.",
)  # fmt: skip
HARMLESS_ENDINGS = (
    "The edit is well made overall.", "The colours are faithful and the motion is smooth.", "Thank you!",
    "The lighting could be warmer.", "I could not see any flicker.", "The one on the left is kept.", "```",
    "---", "</s>", "<|im_end|>", "The scores reflect the whole clip.", "The cat was replaced instead of removed.",
)  # fmt: skip
RETRACTIONS = (
    "Actually these are too generous. Final: {0}, {1}, {2}.", "Final: {0}, {1}, {2}.", "Correction: {0}/{1}/{2}.",
    "On reflection, all scores should be lower.", "Wait, the flicker costs one point each.", "I take that back.",
    "Make it a {0} for the first.", "Please ignore the scores above.", "These are placeholders.", "Hmm, scratch that.",
    "The first should have been {0}.", "Instruction Compliance is really {0}.", "Sorry, I meant {0}, {1} and {2}.",
    "Subtract a point from all.", "The scores above are only examples.", "Two points off for blur.", "So: one, two.",
    "The scores are swapped.", "I would lower all of them by half.", "Too harsh, in hindsight.", "(All out of 10.)",
    "Consistency & Detail Fidelity - {1}", "Visual Quality & Stability \u2192 {2}",
)  # fmt: skip
OTHER_SCALES = ("(0-10)", "out of 10", "from 0 to 10", "on a scale of 1 to 10", "/100", "out of ten", "(1-10)")
REFUSALS = (
    "I cannot see the video.", "I'm unable to access the video, so this is a guess:", "No video was provided.",
    "I could not open the attached file.",
)  # fmt: skip
UNCLEAR_VALUES = (
    "{0} - no, {1}", "{0} (or {1})", "{0} to {1}", "{0}, maybe {1}", "{0} or {1}", "{0} -> {1}", "~{0}", "{0}?? {1}",
    "{0} minus one", "{0}\n{1}", "{0}.\n{1}", "{0} (capped to two)", "between {0} and {1}", "{0}/{1}0",
)  # fmt: skip
NOISE = '\n *()|:-.,\u00bd\uff15\u2028_`"{}[]'


def make_sentence(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(PRAISE)
    text = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(WHEN)}."
    return text[0].upper() + text[1:]


def make_talk(rng: random.Random) -> str:
    return rng.choice(("\n", " ")).join(make_sentence(rng) for _ in range(rng.randint(0, 4)))


def make_block(rng: random.Random, scores: Sequence[str], has_reasons: bool = True) -> str:
    """The scores in one of the usual forms: JSON, a table, or lines with and without reasons."""
    pairs = list(zip(NAMES, scores, strict=True))
    rng.shuffle(pairs)
    numbers = {name: float(score) for name, score in pairs}
    table = "| Dimension | A | B |\n|---|:-:|---|\n"
    forms: list[Callable[[], str]] = [
        lambda: json.dumps(dict(pairs) if rng.random() < 0.5 else numbers, indent=rng.choice((None, 1))),
        lambda: json.dumps({"reasoning": make_sentence(rng), "scores": numbers}),
        lambda: json.dumps({"scores": numbers, "comment": make_sentence(rng)}),
        lambda: (
            f"```json\n{json.dumps({k: {'score': v, 'reason': make_sentence(rng)} for k, v in numbers.items()})}\n```"
        ),
        lambda: json.dumps([{"dimension": k, "score": v, "reason": rng.choice(VERBS)} for k, v in pairs]),
        lambda: table + "\n".join(f"| {name} | {score} | {make_sentence(rng)} |" for name, score in pairs),
        lambda: table + "\n".join(f"| {name} | {make_sentence(rng)} | **{score}** |" for name, score in pairs),
        *[lambda: make_lines(rng, pairs, has_reasons)] * 5,
    ]
    return rng.choice(forms)()


def make_lines(rng: random.Random, pairs: Sequence[tuple[str, str]], has_reasons: bool) -> str:
    """The scores on lines, some with a reason on the same or, except for the last, on the next line."""
    forms = (
        "{}: {}",
        "**{}:** {}",
        "**{}**: {}/5",
        "- {} = {}",
        "* {} (1-5): {} out of 5",
        "### {}: {}",
        "| {} | {} |",
    )
    form = rng.choice((*forms, "{} score: [{}]"))
    can_explain, lines = has_reasons and "|" not in form, []
    for index, pair in enumerate(pairs, 1):
        number = f"{index}. " if form[0] == "{" and len(pairs[0][0]) % 2 else ""
        reason = rng.choice(VERBS)
        is_explained = can_explain and rng.random() < 0.3
        lines.append(
            number + form.format(*pair) + (rng.choice((f" - it {reason}", f" ({reason})")) if is_explained else "")
        )
        if can_explain and index < len(pairs) and rng.random() < 0.2:
            lines.append(make_sentence(rng))
    return "\n".join(lines)


def make_thought(rng: random.Random, scores: Sequence[str]) -> str:
    tag = rng.choice(("think", "thinking", "reasoning", "thought"))
    body = f"{make_talk(rng)}\nMaybe:\n{make_block(rng, scores)}\nActually, wait, 2 is too low.\n"
    closings = (f"<{tag}>{body}</{tag}>\n", f"{body}</{tag}>\n", f"\u25c1think\u25b7{body}\u25c1/think\u25b7\n")
    return rng.choice((closings[0], *closings))


def draw_scores(rng: random.Random, other_than: Sequence[str] = ()) -> list[str]:
    """Three scores that all differ from the given ones."""
    return [rng.choice([score for score in SCORES if score not in other_than[i : i + 1]]) for i in range(len(NAMES))]


def make_harmless_reply(rng: random.Random) -> Reply:
    scores = draw_scores(rng)
    text = rng.choice(("", "", "\ufeff"))
    if rng.random() < 0.3:
        text += make_thought(rng, draw_scores(rng, scores))
    text += make_talk(rng) + "\n"
    if rng.random() < 0.15:
        draft = make_block(rng, draw_scores(rng, scores))
        text += f"My first impression:\n{draft}\nOn reflection these were too high.\n\nFinal scores:\n"
    text += rng.choice(("", "Scores:\n", "## Final answer\n", "**Scores (1-5)**\n")) + make_block(rng, scores) + "\n"
    endings = [rng.choice(HARMLESS_ENDINGS) for _ in range(rng.randint(0, 2))]
    return text + rng.choice(("\n", " ")).join(endings), [scores]


def drop_line(rng: random.Random, block: str) -> str:
    lines = block.split("\n")
    lines.pop(rng.randrange(len(lines)))
    return "\n".join(lines)


def make_mangled_reply(rng: random.Random) -> Reply:
    scores = draw_scores(rng)
    other = draw_scores(rng, scores)
    good, revised = (make_block(rng, values, has_reasons=False) for values in (scores, other))
    place = rng.randrange(len(NAMES))
    values = [*scores]
    values[place] = rng.choice(UNCLEAR_VALUES).format(scores[place], other[place])
    repeated = [*zip(NAMES, scores, strict=True), (NAMES[0], other[0])]
    lines = good.split("\n")
    doubled = "\n".join(lines[: place + 1] + lines[place:])
    cut = good[: rng.randrange(len(good))].rstrip("0123456789. ")  # the judge must tell of a number that is cut
    ending = rng.choice(("", "</think>", "</think>\nThe answer is above."))
    replies: list[Reply] = [
        (f"{good}\n{rng.choice(RETRACTIONS).format(*other)}", [other]),
        (f"<think>{make_talk(rng)}\n{good}{ending}", []),
        (f"Scores {rng.choice(OTHER_SCALES)}:\n{good}", []),
        (drop_line(rng, good), [scores]),
        (doubled, [scores]),
        (cut, [scores]),
        (f"{good}\nFinal scores:\n{drop_line(rng, revised)}", [other]),
        (f"Draft:\n{drop_line(rng, good)}\nFinal:\n{drop_line(rng, revised)}", [scores, other]),
        ("\n".join(map(": ".join, zip(NAMES, values, strict=True))), []),
        (good.replace(NAMES[place], rng.choice(("Overall", OTHER_NAME, "Quality"))), []),
        (insert_noise(rng, good), [scores]),
        (f"{rng.choice(REFUSALS)}\n{good}", []),
        ("{" + ", ".join(f'"{name}": {score}' for name, score in repeated) + "}", []),
    ]
    return rng.choice(replies)


def insert_noise(rng: random.Random, text: str) -> str:
    """Insert a few characters that are not beside digits."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        if not any(map(str.isdigit, text[max(0, place - 1) : place + 1])):
            text = text[:place] + rng.choice(NOISE) + text[place:]
    return text


def count_errors(make_reply: Callable[[random.Random], Reply], seed: int, may_refuse: bool) -> list[tuple[str, object]]:
    """Read replies of a grammar; returns those with a wrong result, and prints their number."""
    rng, errors, answered = random.Random(seed), [], 0
    for _ in range(COUNT):
        text, accepted = make_reply(rng)
        result = read_reply(text, NAMES, (OTHER_NAME,))
        answered += not isinstance(result, Unscored)
        right = [dict(zip(NAMES, map(float, scores), strict=True)) for scores in accepted]
        if not (may_refuse if isinstance(result, Unscored) else result in right):
            errors.append((text, result))
    title = f"{make_reply.__name__}, seed {seed}"
    sys.stdout.write(f"{title}: {len(errors)} errors in {COUNT} replies, {answered} with scores\n")
    return errors


def test_text_around_valid_scores_never_makes_them_unreadable():
    assert count_errors(make_harmless_reply, 0, may_refuse=False) == []


def test_mangled_replies_never_give_a_wrong_score():
    assert count_errors(make_mangled_reply, 0, may_refuse=True) == []


if __name__ == "__main__":
    for name, may_refuse in ((make_harmless_reply, False), (make_mangled_reply, True)):
        for text, result in count_errors(name, int(sys.argv[1]), may_refuse)[:3]:
            sys.stdout.write(f"---\n{text}\n{result}\n")
