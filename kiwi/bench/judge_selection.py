"""The judge that `--judge` names."""

from kiwi.bench.judges import JudgeSpec, Oracle, Replay
from kiwi.bench.model_judge import ModelJudge
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.suites import Suite
from kiwi.errors import InputError
from kiwi.options import parse_assignments
from kiwi.reading import require_file
from kiwi.spec import override
from kiwi.vlm import FORMS, parse_model


def select_judge(options: BenchmarkOptions, suite: Suite) -> JudgeSpec:
    """The judge named in the options; by default the oracle for rendered data, else that of the published scores.

    Raises:
        InputError: the judge is unknown.
        SpecError: a setting is not one of its fields, or has a value that is not allowed.
    """
    name = options.judge or ("oracle" if options.renders_data else suite.judge)
    judge = _parse_judge(name, upload=options.judge is None)
    changed: JudgeSpec = override(judge, parse_assignments(options.judge_set))
    return changed


def _parse_judge(name: str, *, upload: bool) -> JudgeSpec:
    """Parse a judge's name; `upload` shows Gemini whole videos, as for the published scores."""
    kind, _, rest = name.partition(":")
    if kind == "oracle" and not rest:
        return Oracle()
    if kind == "replay" and rest:
        return Replay(ledger=str(require_file(rest, what="ledger")))
    if (model := parse_model(name, upload=upload and kind == "gemini")) is not None:
        return ModelJudge(model=model)
    raise InputError(
        f"there is no judge named {name!r}",
        code="unknown-judge",
        expected=f"oracle (for --data sandbox), replay:LEDGER, {', '.join(FORMS)}",
        fix="docs/judges.md describes them; docs/extending.md shows how to add one",
    )
