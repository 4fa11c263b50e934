"""Reading a reply gives the scores that it states, or none."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.bench.reply import Unscored, cap_scores, read_reply

NAMES = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
OTHERS = ("Identity Consistency & Compliance", "Visual Harmony & Perspective")


def reply(first="4", second="3", third="5"):
    lines = zip(NAMES, (first, second, third), strict=True)
    return "Brief reasoning: 2 of 3 birds are gone.\n" + "\n".join(f"{name}: {value}" for name, value in lines)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        ("4.9", 4.9),
        ("**4**", 4),
        ("4/5", 4),
        (" 4 / 5.0", 4),
        ("4 out of 5", 4),
        ("4.", 4),
        ("[4]", 4),
        ("4 (well made)", 4),
        ("4 - well made", 4),
        ("`4.25`", 4.25),
    ],
)
def test_usual_forms_of_a_score_are_read(text, number):
    assert read_reply(reply(first=text), NAMES) == dict(zip(NAMES, (number, 3, 5), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "**Visual Quality & Stability:** 5\n- Consistency & Detail Fidelity: 3\n  1. Instruction Compliance (1-5): 4/5",
        "| dimension | score |\n|---|---|\n| Instruction Compliance | 4 |\n| Consistency and Detail Fidelity | 3 |\n"
        "| Visual Quality & Stability | 5 |",
        "# Instruction compliance score: 4\n• consistency & detail fidelity = 3\n### VISUAL QUALITY & STABILITY: **5**",
        "```json\n" + json.dumps(dict(zip(NAMES, (4, 3, 5.0), strict=True))) + "\n```",
        json.dumps(dict(zip(NAMES, ("4", "3/5", 5), strict=True)) | {"reasoning": "fine"}, indent=1),
        "Instruction Compliance: both birds are gone, as asked\n" + reply(),
        reply() + "\n\nThe birds on the left went too.",
        reply().replace("\n", "\r\n"),
    ],
)
def test_scores_are_read_in_any_order_from_markdown_and_json(text):
    assert read_reply(text, NAMES, OTHERS) == dict(zip(NAMES, (4, 3, 5), strict=True))


UNREADABLE = [
    "4.\n5", "4,\n5", "4\n\n.5", "1\n0", "05", "4_.5", "3*.5", "4*5", "4 (+\u00bd)", "4 - \u00bd", "4 - \uff15",
    "4 (or \uff13)", "4 (\u0664)", "\uff14", "4 - no, make that two", "5 - one point for flicker", "5 (not applicable)",
    "1 - N/A", "5 (capped to two)", "4 5", "4 | 5", "4 \u00b7 5", "4 stars", "[4", "4]", "+4", "4e0", "4 -- or so 3",
]  # fmt: skip
"""Values that may mean a score other than their first number."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no score of Instruction Compliance, Consistency"),
        (reply(first="four"), "no score of Instruction Compliance"),
        (reply(first="4 - 5"), "cannot be read"),
        (reply(first="4, maybe 5"), "cannot be read"),
        (reply(first="4 (or 3)"), "cannot be read"),
        (reply(first="4/10"), "a scale other"),
        (reply(first="4,5"), "cannot be read"),
        (reply(first="4½"), "cannot be read"),
        (reply(first="4\n.5"), "cannot be read"),
        (reply(first="-4"), "cannot be read"),
        (reply(first="6"), "not from 1 to 5"),
        (reply(first="0.99"), "not from 1 to 5"),
        (reply(first="nan"), "no score of"),
        (reply() + "\nInstruction Compliance: 4", "after the last complete block"),
        (reply() + "\nVisual Harmony & Perspective: 2", "another rubric"),
        (reply().rsplit("\n", 1)[0], "no score of Visual Quality"),
        ('{"Instruction Compliance": true, "Consistency & Detail Fidelity": 3, "Visual Quality & Stability": 5}', "no"),
        (
            '{"Instruction Compliance": 4, "Instruction Compliance": 2, "Consistency & Detail Fidelity": 3, '
            '"Visual Quality & Stability": 5}',
            "more than once",
        ),
        ("[" * 19000, "no score"),
        ("[" * 100001, "characters"),
        *((reply(first=value), "cannot be read") for value in UNREADABLE),
        *(
            (reply().replace("ce: 4", f"ce {note}: 4"), "no score of Instruction Compliance")
            for note in ("(weight)", "(best)", "(of the source)")
        ),
        *((reply().replace("ce: 4", f"ce {note}: 4"), "a scale other") for note in ("(1-10)", "(out of 10)", "(/100)")),
        ("All scores are out of 10.\n" + reply(), "a scale other"),
        (reply(first="4\nout of 10"), "a scale other"),
        *(
            (f"{reply()}\n{line}", "after the scores")
            for line in (
                "Final Instruction Compliance: 1",
                "Instruction Compliance - 2",
                "Instruction Compliance \u2192 1",
                "On reflection instruction compliance is 1.",
                "> Instruction Compliance: 1",
                "<!-- Instruction Compliance: 1 -->",
                "Instruction Compliance: both of the 2 birds are gone",
            )
        ),
        (reply() + "\nInstruction Compliance: \u0663", "after the last complete block"),
        ("I cannot see the video. The form would be:\n" + reply("1", "1", "1"), "saw nothing"),
        (reply(third="5\n2 of these are doubtful"), "cannot be read"),
    ],
)
def test_an_unreadable_reply_has_a_reason(text, reason):
    result = read_reply(text, NAMES, OTHERS)
    assert isinstance(result, Unscored)
    assert reason in result.reason


TWOS = reply("2", "2", "2")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{TWOS}\nActually, wait.</think>\n{reply()}",
        f"Perhaps\n{TWOS}\n</think>\n{reply()}",
        f"\u25c1think\u25b7{TWOS}\u25c1/think\u25b7{reply()}",
        f"<|channel|>analysis<|message|>{TWOS}<|end|><|channel|>final<|message|>{reply()}<|return|>",
        f"```thinking\n{TWOS}\n```\n{reply()}",
        "<think>I cannot see the video. Score out of 10?</think>" + reply(),
        f"Draft:\n{TWOS}\nOn reflection these are too low.\n\nFinal scores:\n{reply()}",
        json.dumps({"scores": dict(zip(NAMES, (4, 3, 5), strict=True)), "reasoning": "2 of 3 birds are gone."}),
        json.dumps([{"dimension": n, "score": s, "reason": "-"} for n, s in zip(NAMES, (4, 3, 5), strict=True)]),
        json.dumps({n: {"score": s, "reason": "from 0 to 2 s"} for n, s in zip(NAMES, (4, 3, 5), strict=True)}),
        "| Dimension | Score | Reason |\n|---|---|---|\n"
        + "".join(f"| {n} | {s} | 2 of 3 birds |\n" for n, s in zip(NAMES, (4, 3, 5), strict=True)),
        "\ufeff" + reply() + "<|im_end|>",
        f"<answer>\n{reply()}\n</answer>",
        "I could not see any flicker in the edited video.\n" + reply(),
        "The cat moves from 0 to 2 s.\n" + reply(),
        "In 2 out of 10 frames the sky is red.\n" + reply(),
        "I rate the 9/16 video as follows; its frame rate of 24 is kept.\n" + reply(),
        reply() + "\nI could not see any flicker. No one would notice the edit.",
        reply() + "\nThe contrast is too low, and the lighting could be better.",
        reply().replace(": ", "\uff1a") + "\n\u80cc\u666f\u4fdd\u6301\u4e00\u81f4\u3002",
    ],
)
def test_text_around_the_last_complete_block_changes_nothing(text):
    assert read_reply(text, NAMES, OTHERS) == dict(zip(NAMES, (4, 3, 5), strict=True))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"<think>{reply()}", "inside its reasoning"),
        (f"<think>{reply()}</think>", "no score of"),
        (f"{reply()}\n</think>", "no score of"),
        (f"<think>a<think>b</think>\n{reply()}", "inside its reasoning"),
        (f"```thinking\n{reply()}", "no score of"),
        (f"{reply()}\n<think>Or rather", "inside its reasoning"),
        (f"{reply()}\n{TWOS.rsplit(chr(10), 1)[0]}", "after the last complete block"),
        *(
            (f"{reply()}\n{line}", "after the scores")
            for line in (
                "Actually these are too generous. Final: 2, 2, 2.",
                "Overall: 4",
                "Confidence: 0.9",
                "So: one, two, two.",
                "Final scores:",
                "Those are placeholders.",
                "My mistake: the dog is still there.",
                "All of these should be lower.",
                "Please disregard the above.",
                "The scores are swapped.",
                "Das war zu hoch.",
                "\u8fd9\u4e9b\u5206\u6570\u592a\u9ad8\u4e86\u3002",
            )
        ),
        *(
            (f"{line}\n{reply()}", "a scale other")
            for line in ("Scores (0-10)", "On a scale of 1 to 7:", "Scale: 0-5", "A ten-point scale.", "Scores in %:")
        ),
        *(
            (f"{line}\n{reply()}", "saw nothing")
            for line in ("No video was provided.", "I have no access to the videos.", "The edited video did not load.")
        ),
        (json.dumps(dict(zip(NAMES, (4, 3, 5), strict=True)) | {"note": "Final: 2, 2, 2"}), "may change them"),
        (json.dumps(dict(zip(NAMES, (4, 3, 5), strict=True)) | {"final": [2, 2, 2]}), "may change them"),
    ],
)  # fmt: skip
def test_reasoning_drafts_and_retracted_scores_are_not_read(text, reason):
    result = read_reply(text, NAMES, OTHERS)
    assert isinstance(result, Unscored)
    assert reason in result.reason


UNITS = [
    *(" ", "*", "_", "(", "[", "|", "\n", "/5", "`", "1. ", "- ", "score ", '"', "\u201c", "{", '{"', "[[", ".", ","),
    *("<think>", "</think>", "<think ", "```think\n", "<|", "</", "scale of ", "the scores ", "I cannot see the "),
    *("final: ", "actually ", "one ", "the one ", "Instruction Compliance: 4\n", "a\n", "\u5206", "1-", "no video "),
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_reply_takes_long_to_read(unit):
    """Quadratic time would take minutes for the longest replies."""
    started, count = time.process_time(), 20_000 // len(unit)
    read_reply(f"{NAMES[0]}{unit * count}4", NAMES, OTHERS)
    read_reply(f"{NAMES[0]}: 4{unit * count}x", NAMES, OTHERS)
    read_reply(f"{reply()}\n{unit * count}x", NAMES, OTHERS)
    assert time.process_time() - started < 4


def test_no_score_exceeds_the_score_that_caps_it():
    scores = read_reply(reply("2", "5", "1.5"), NAMES)
    assert cap_scores(scores, NAMES[0]) == dict(zip(NAMES, (2, 2, 1.5), strict=True))


numbers = st.sampled_from(["1", "2", "3", "4", "5", "1.5", "3.25", "4.9"])
forms = st.sampled_from(["{}: {}", "**{}**: {}", "- {} = {}/5", "| {} | {} |", "{} (1-5): {} out of 5", "{}: [{}]"])
noise = st.characters(codec="utf-8", exclude_categories=["Nd", "Cs"]) | st.sampled_from(
    ["\n", "\r", "\u2028", " ", *"()[]*_`|:.,/-", "\u00bd", "\uff15", "\u0663"]
)
changes_of_a_reply = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "double", "drop"]), st.integers(0, 400), noise), max_size=4
)


@settings(max_examples=1000)
@given(st.lists(numbers, min_size=3, max_size=3), forms, st.permutations(NAMES), changes_of_a_reply)
def test_a_corrupted_reply_gives_no_score_or_the_right_one(scores, form, order, changes):
    """Changes neither touch nor join digits: without its slash, 1.5/5 could not be recovered."""
    truth = dict(zip(NAMES, scores, strict=True))
    text = "\n".join(["Reasoning: fine.", *(form.format(name, truth[name]) for name in order)])
    for change, place, char in changes:
        position = place % (len(text) + 1)
        lines = text.split("\n")
        if change == "insert":
            text = text[:position] + char + text[position:]
        elif change == "delete" and not any(map(str.isdigit, text[max(0, position - 1) : position + 1])):
            text = text[:position] + text[position + 1 :]
        elif change == "double":
            text = "\n".join([*lines, lines[place % len(lines)]])
        elif change == "drop":
            text = "\n".join(lines[: place % len(lines)] + lines[place % len(lines) + 1 :])
    result = read_reply(text, NAMES, OTHERS)
    if not isinstance(result, Unscored):
        assert result == {name: float(truth[name]) for name in NAMES}
