r"""Words in a judge's prose that matter to its scores: other scales, refusals, retractions and numbers.

`kiwi.bench.reply` finds the score lines and asks here about the prose around them. Every pattern is an alternation of
short patterns with an example each. All repetitions are bounded, so that searching takes linear time. In them,
`(?:\w+ ){0,2}` stands for up to two words.
"""

import re
import unicodedata


def _compile(*patterns: str, flags: int = re.I) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), flags)


def _any(*words: str) -> str:
    return f"(?:{'|'.join(words)})"


def _not_after(*words: str) -> str:
    return "".join(rf"(?<!\b{word} )" for word in words)


# Numbers --------------------------------------------------------------------------------------------------------------

_NUMBER_WORDS = _any(
    *("zero", "nil", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("fifteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand"),
    *("zwei", "drei", "vier", "f\u00fcnf", "sechs", "deux", "trois", "quatre", "cinq", "tres", "cuatro", "cinco"),
)  # fmt: skip
_PART = _not_after("first", "second", "lower", "upper", "left", "right", "top", "bottom", "other", "latter")
_PRONOUN = _not_after(
    *("the", "this", "that", "no", "any", "every", "each", "which", "some", "other", "only", "as"),
)  # fmt: skip
_AFTER_PRONOUN = _any("of", "on", "in", "with", "that", "who", "would", "could", "can", "might", "may", "by")
_NUMBER_WORD = _compile(
    rf"\b{_NUMBER_WORDS}\b",
    rf"{_PART}\bhalf\b",  # not "the upper half"
    rf"{_PRONOUN}\bone\b(?! {_AFTER_PRONOUN}\b|['\u2019-])",  # not "no one", "the one on the left", "one's"
)
# Chinese numerals are parts of common words, such as that for "consistent": only counted points are numbers.
_CHINESE_DIGITS = "\u96f6\u4e00\u4e8c\u4e24\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341\u534a"
_CHINESE_SCORE = re.compile(rf"[{_CHINESE_DIGITS}](?=[\u5206\u661f\u70b9])")

# Scales ---------------------------------------------------------------------------------------------------------------

_NUMBER = rf"(?:\d+|{_NUMBER_WORDS}|one|a hundred)"
_TO = r" ?(?:to|through|and|[-\u2013\u2014]) ?"
_RIGHT_SCALE = rf"(?:1{_TO}5|one{_TO}five)\b"
_LARGE = r"(?:[6-9]|[1-9]\d+|ten|twenty|hundred|a hundred|one hundred)\b"
# What is counted, as in "2 out of 10 frames", follows within two words.
_THINGS = _any(
    *("frames?", "seconds?", "secs?", "s", "minutes?", "shots?", "clips?", "videos?", "images?", "pixels?", "fps"),
    *("objects?", "people", "persons?", "birds?", "regions?", "cases?", "times?", "formats?", "aspect", "ratio"),
)  # fmt: skip
_COUNTED = rf"(?! ?(?:of (?:the )?)?(?:\w+ )?{_THINGS}\b)"
_SCORED = r"(?:scor(?:es?|ed|ing)|ratings?|rated|(?<!frame )(?<!bit )rate|grad(?:es?|ed|ing)|marks?|points?)"
_OTHER_SCALE = _compile(
    # "on a scale of 1 to 10", "scale: 0-5"
    rf"\bscales?\W{{1,4}}(?:(?:of|from|is|was|used|ranges?|between)\W{{1,3}}){{0,3}}(?!{_RIGHT_SCALE})[-+]?{_NUMBER}{_TO}"
    rf"{_NUMBER}\b",
    # "a scale of 10", "a 10-point scale", "the 1-10 scale"
    rf"\bscales? (?:of|up to) {_LARGE}",
    rf"\b(?!5\b|five\b){_NUMBER}[- ]point (?:\w+ )?scales?\b",
    rf"\b(?!{_RIGHT_SCALE}){_NUMBER}{_TO}{_NUMBER} scales?\b",
    # "the scores are out of 10", "scores (0-10)", "rated each from 1 to 10", "ratings from 0 to 5", "scores in percent"
    rf"\b{_SCORED}\b[^.\n\d]{{0,30}}?(?:\bout of|(?<!\d)/|\b(?:[01]|zero|one){_TO}) ?{_LARGE}{_COUNTED}",
    rf"\b{_SCORED}\b[^.\n\d]{{0,30}}?\b(?:0|zero){_TO}{_NUMBER}\b{_COUNTED}",
    rf"\b{_SCORED}\b[^.\n\d]{{0,20}}?(?:\bper ?cent|%)",
    # "Visual Quality (1-10): 8"
    rf"\((?:score )?(?:out of|/|[01]{_TO}) ?{_LARGE}\)(?= ?[:=|])",
    # "everything is out of ten", "maximum score: 10"
    rf"\b(?:is|are|all|each|everything|below|above|given) out of {_LARGE}{_COUNTED}",
    rf"\bmax(?:imum)?[_ ](?:scores?|ratings?|points?)\W{{1,5}}(?:(?:is|of|are) )?{_LARGE}",
)
_OTHER_MAXIMUM = re.compile(rf"\d ?(?:/|out of) ?{_LARGE}", re.I)

# Refusals -------------------------------------------------------------------------------------------------------------

_UNABLE = r"(?:can ?not|can['\u2019]t|could not|couldn['\u2019]t|(?:un|not )able to)"
_DID_NOT = r"(?:(?:do|did) not|(?:do|did)n['\u2019]t)"
_SEE = _any("see", "view", "watch", "access", "open", "play", "load", "process", r"analy[sz]e", "find", "receive")
_MEDIA = r"(?:videos?|images?|pictures?|clips?|files?|attachments?|footage|media)"
_ADJECTIVES = r"(?:(?:actual|edited|original|source|attached|first|second|provided|two) ){0,2}"
# What follows the media in a refusal. "I could not see any video noise" continues differently, and is praise.
_END_OF_REFUSAL = (
    r"(?= ?(?:$|[.,;:!?)\n\u2014]|- |"
    r"(?:so|you|and|but|because|since|at all|here|directly|provided|attached|itself|themselves|or|from|as|contents?)\b|"
    r"in (?:your|this|the) (?:message|prompt|conversation|request|chat)))"
)
_REFUSAL = _compile(
    # "I cannot see the two videos", "I'm unable to open the attached file", "I don't see any video here"
    rf"\b(?:{_UNABLE}|{_DID_NOT}|without(?: being able to)?) (?:\w+ )?(?:{_SEE}|seeing|viewing|watching) "
    rf"(?:(?:any|an?|the|these|this|those|your|either|both) )?{_ADJECTIVES}{_MEDIA}\b{_END_OF_REFUSAL}",
    rf"\b{_UNABLE} (?:\w+ )?{_SEE} (?:the|these|those|your) (?:\w+ )?frames\b{_END_OF_REFUSAL}",
    # "I don't have access to the video", "no access to"
    rf"\b(?:{_DID_NOT} have (?:\w+ )?|no )access to (?:\w+ ){{0,2}}{_MEDIA}\b",
    # "no video was provided", "the edited video is missing", "the video did not load"
    rf"\bno (?:\w+ )?(?:{_MEDIA}|frames?) (?:was|were|is|are|has been|have been) "
    r"(?:provided|attached|given|visible|sent|included|shown|available)\b",
    rf"\b{_MEDIA} (?:is|are|was|were) (?:missing|not (?:attached|provided|available|included|visible))\b",
    rf"\b{_MEDIA} (?:failed to|(?:did|does|could|can)(?: ?not|n['\u2019]t)) (?:be )?(?:load|open|play|display)",
    # "as a text-based model", and refusals in German and Chinese
    r"\btext[- ](?:based|only) (?:\w+ ){0,3}(?:model|assistant|ai)\b",
    r"\bkann (?:\w+ ){0,4}(?:video|bild|datei)s? nicht (?:sehen|\u00f6ffnen|ansehen|abspielen|laden)\b",
    r"(?:\u65e0\u6cd5|\u4e0d\u80fd)(?:\u76f4\u63a5)?(?:\u67e5\u770b|\u89c2\u770b|\u6253\u5f00|\u8bbf\u95ee|\u770b\u5230)"
    r"[^\u3002\n]{0,6}(?:\u89c6\u9891|\u56fe\u7247|\u6587\u4ef6)",
    flags=re.I | re.M,
)

# Retractions ----------------------------------------------------------------------------------------------------------

_SCORES = r"(?:scores?|ratings?|grades?|verdicts?|assessments?|evaluations?|judge?ments?)"
_SCORES_OR_NUMBERS = rf"(?:{_SCORES}|points?|numbers?|marks?|values?)"
_THEM = (
    r"(?:it|that|this|them|those|these|all|both|everything|(?:the )?(?:first|second|third|last|middle|other)(?: one)?)"
)
_LESS = r"(?:lower|higher|less|more|worse|better|down|up|capped|reduced|raised|halved|doubled|swapped)"
_SENTENCE_START = r"(?:^|[.!?;:,\u2026-] ?|\b(?:hmm|well|but|and|no|oh|ok|okay),? )"
_RETRACTION = _compile(
    # second thoughts: "Actually", "correction", "on reflection", "wait", "sorry"
    rf"{_SENTENCE_START}(?:actually|wait)\b",
    r"\b(?:correction|corrected|retract\w*|reconsider\w*|re-?evaluat\w+|re-?assess\w*|revis(?:e[ds]?|ing|ions?)|disregard)\b",
    r"\b(?:scratch|strike|forget|discard|withdraw|undo|ignore) (?:that|this|those|these|it|the|my|all|what|above)\b",
    r"\b(?:never ?mind|rethink\w*|second thoughts?|in hindsight|in retrospect|hold on|oops|whoops|sorry|apolog\w+)\b",
    r"\b(?:up)?on (?:second|further|closer|reflection|review|re-?(?:watch|view|consider|think|inspect|examin)\w*)\b",
    r"\btak(?:e|ing) (?:\w+ ){0,2}back\b",
    # own errors: "my mistake", "I was wrong", "I misjudged", "I should have", but not "I must say"
    r"\bmy (?:\w+ )?(?:mistake|error|bad)\b",
    r"\bi (?:was|am|got|have been) (?:\w+ )?(?:wrong|mistaken|off|incorrect|confused)\b",
    r"\bi (?:now|would (?:now|rather|lower|raise)|mis(?:read|judged|scored|took|counted|sed)|meant|mixed|confused)\b",
    r"\bi (?:overlooked|(?:over|under)-?(?:rated|scored|estimated))\b",
    r"\bi (?:should|must|have to|need to|ought to)\b(?! (?:say|admit|note|add|mention|stress)\b)",
    # scores that are none: "placeholders", "only examples", "not final"
    r"\b(?:placeholders?|dummy|hypothetical|made[- ]up(?! of)|fabricated|invalid|void|obsolete|superseded)\b",
    rf"\b(?:random|arbitrary|example|sample) {_SCORES_OR_NUMBERS}\b",
    r"\b(?:just|only|merely|mere|as|are) (?:an? )?(?:examples?|guess(?:es)?|drafts?|format|estimates?|templates?)\b",
    r"\bnot (?:my |the |yet )?(?:final|actual|real|valid|meant|reliable|definitive)\b",
    # "too generous", "these are too high"
    r"\btoo (?:generous|harsh|lenient|strict|kind|optimistic|pessimistic|severe|positive|negative|charitable|nice)\b",
    rf"\b(?:{_SCORES_OR_NUMBERS}|i|we|they|these|those|all|both|them)\b (?:\w+ ){{0,4}}too (?:high|low|good|bad)\b",
    r"\b(?:it|this|that|which) (?:is|was|seems|looks) (?:\w+ )?too (?:high|low)\b",
    # "the scores should be lower", "all of them deserve less", "the numbers are swapped"
    rf"\b{_SCORES}\b[^.!?]{{0,40}}\b(?:should|must|ought|would|need|could|were|was|apply|count|(?:are|is|do) not|"
    r"(?:are|is|do)n['\u2019]t)\b",
    rf"\b{_SCORES_OR_NUMBERS}\b[^.!?]{{0,40}}\b(?:wrong|incorrect|inaccurate|swapped|switched|reversed|inverted|lower|"
    r"higher|minus|plus|halved|doubled|unfair|inflated|deflated)\b",
    rf"\b(?:should|must|ought to) (?:\w+ )?(?:be|have been|get|receive|drop|rise|go|earn) (?:\w+ ){{0,2}}{_LESS}\b",
    r"\b(?:would|could) (?:be|get|receive|drop|go) (?:\w+ )?(?:lower|higher|capped|reduced|halved|swapped|down)\b",
    r"\b(?:deserves?|merits?|warrants?|earns?) (?:\w+ ){0,2}(?:less|more|lower|higher|worse|better|minimum|maximum)\b",
    # "subtract a point", "lower the last", "two points less", "I swapped the first and the last", "vice versa"
    rf"\b(?:lower|raise|reduce|increase|decrease|subtract|deduct|add|halve|double|swap|switch|cap|drop|cut|take) "
    rf"(?:\w+ ){{0,3}}{_SCORES_OR_NUMBERS}\b",
    rf"\b(?:lower|raise|reduce|subtract|deduct|halve|double|swap|cap) {_THEM}\b",
    r"\b(?:points?|scores?|ratings?) (?:lower|higher|less|more|off|deducted|too)\b",
    r"\b(?:swapped|switched|mixed up|interchanged) (?:the )?(?:scores?|first|second|last|names?|dimensions?|order)\b",
    r"\b(?:the other way (?:a)?round|vice versa|the other order|in reverse order)\b",
    # "make it a two", "set those lower", "instead"
    rf"\b(?:make|making|change|changing|set|setting|call|turn) {_THEM} (?:(?:all|both|an?|to|be|as|into) ){{0,2}}"
    rf"(?:{_NUMBER}|lower|higher|less|worse|better)\b",
    r"\binstead\b(?! of\b)",
    # German, French and Spanish: correction, I correct, too high, I take it back, sorry
    r"\b(?:korrektur|korrigier\w*|revidier\w*|entschuldig\w*|doch (?:eher|lieber|nur)|nehme \w+ zur\u00fcck)\b",
    r"\bzu (?:hoch|niedrig|streng|gro\u00dfz\u00fcgig)\b",
    r"\b(?:corrig\w+|plut\u00f4t|trop (?:haut|bas|g\u00e9n\u00e9reux)|d\u00e9sol\u00e9e?)\b",
    r"\b(?:m\u00e1s bien|demasiado (?:alt|baj|generos)\w*|perd\u00f3n)\b",
    # Chinese: correct, amend, change to, should be, withdraw, sorry, again, too high, too low, void, ignore
    r"\u66f4\u6b63|\u4fee\u6b63|\u6539\u4e3a|\u6539\u6210|\u5e94\u8be5|\u5e94\u4e3a|\u64a4\u56de|\u62b1\u6b49|\u91cd\u65b0",
    r"\u592a\u9ad8|\u592a\u4f4e|\u504f\u9ad8|\u504f\u4f4e|\u4f5c\u5e9f|\u5ffd\u7565",
)
# "Final: 2", "the revised scores are two": announces other scores in a sentence.
_NEW_SCORES = re.compile(
    r"\b(?:final|revised|corrected|updated|adjusted|new|true|real|actual)\b(?: (?:scores?|answers?|ratings?))? ?"
    r"(?:[:=\u2192]|-+>? |is\b|are\b)",
    re.I,
)
# A heading that separates a draft from the final scores.
_REVISION = re.compile(
    r"\b(?:final|revised|corrected|updated|adjusted|draft|initial|preliminary|tentative|first|second|example|format)\b",
    re.I,
)
# Words of a remark on a score's own line that may correct it, such as "5 - capped".
_CORRECTING_WORDS = _compile(
    r"\bno(?=\W{0,9}$|[,.;:!])|\bn/a\b",
    r"\bnot(?=\W{0,9}$|[,.;:!]| (?:applicable|sure|certain|scored|rated|given|final|really)\b)",
    r"\b(?:none(?! of)|nil|points?|capp?(?:ed)?|actually|instead(?! of)|or rather|lower(?:ed)?|reduced?|minus|plus)\b",
    r"\b(?:except|max(?:imum)?|min(?:imum)?|maybe|perhaps)\b",
    r"\b(?:almost|nearly|barely|at (?:most|least))\W{0,9}$",
)
_QUOTATION = re.compile(r'"[^"]*"|\u201c[^\u201c\u201d]*\u201d')  # such as the instruction
_LINE_BREAK = re.compile(r"(?<=[\w,])[ \t]*\n[ \t]*(?=[a-z\d])")


def find_other_scale(text: str) -> str | None:
    """The statement of a scale other than 1 to 5; None if there is none."""
    match = _OTHER_SCALE.search(_LINE_BREAK.sub(" ", text))
    return None if match is None else match[0]


def names_other_maximum(value: str) -> bool:
    """Whether a score is given as a part of another maximum than 5, such as "8/10"."""
    return _OTHER_MAXIMUM.search(value) is not None


def find_refusal(text: str) -> str | None:
    """The statement that the judge saw nothing, such as "I cannot see the video"; None if there is none."""
    match = _REFUSAL.search(_LINE_BREAK.sub(" ", text))
    return None if match is None else match[0]


def has_numeral(text: str) -> bool:
    """Whether a text has a number in digits of any script, or a Chinese one that counts points."""
    is_numeral = any(char.isnumeric() and unicodedata.category(char) != "Lo" for char in text)
    return is_numeral or _CHINESE_SCORE.search(text) is not None


def states_number(text: str) -> bool:
    """Whether a text states a number in digits or words."""
    return has_numeral(text) or _NUMBER_WORD.search(text) is not None


def retracts_scores(text: str) -> bool:
    """Whether prose outside quotation marks retracts scores or announces others."""
    unquoted = _QUOTATION.sub("", text)
    if _RETRACTION.search(unquoted):
        return True
    return any(states_number(unquoted[match.end() : match.end() + 80]) for match in _NEW_SCORES.finditer(unquoted))


def may_correct(remark: str) -> bool:
    """Whether a remark after a score, on the same line, may change it."""
    return states_number(remark) or _CORRECTING_WORDS.search(remark) is not None or retracts_scores(remark)


def is_revision_heading(line: str) -> bool:
    """Whether a line announces a draft or the final scores, such as "Final scores:"."""
    is_heading = line.endswith((":", "\uff1a")) or line.startswith("#") or len(line.split()) <= 3
    return is_heading and _REVISION.search(line) is not None
