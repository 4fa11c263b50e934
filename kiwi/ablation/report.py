"""The report of a study: tables, figures and analysis.json, from the results of all finished runs.

An *arm* is one variant of the configuration; the first arm, the *base*, is the unchanged configuration. The *primary*
metric is the one that the study's file names as decisive.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kiwi import console
from kiwi.ablation.analysis import ArmSummary, summarize_arms, to_json
from kiwi.ablation.figures import write_figures
from kiwi.ablation.results import RunResult, read_result
from kiwi.ablation.runs import RESULT_FILE, Run, describe_failure
from kiwi.ablation.study import Study, count_cost
from kiwi.ablation.tables import (
    make_brief_table,
    make_category_table,
    make_main_table,
    make_overview_table,
    make_problem_tables,
    make_tidy_table,
)
from kiwi.media.files import write_json, write_text
from kiwi.statistics.intervals import describe_single_items
from kiwi.tables import Table, latex_document


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """The results of a study, of which some runs may be missing.

    Args:
        table: short table of the primary metric, or the plan of a dry run; None if there are no results.
        summaries: summaries of all arms, keyed by metric; primary metric first.
        missing: name and state of every run without a result.
    """

    table: Table | None
    summaries: Mapping[str, Sequence[ArmSummary]] = field(default_factory=dict)
    missing: Sequence[str] = ()


def write_report(study: Study, runs: Sequence[Run], out: Path) -> StudyReport:
    """Analyse all finished runs, and write tables, figures, analysis.json and the configurations of the study."""
    results = [read_result(run.folder / RESULT_FILE) for run in runs if run.state == "done"]
    missing = [f"{run.name}: {run.state}" for run in runs if run.state != "done"]
    write_json(out / "study.json", _describe_study(study))
    summaries = _summarize(study, results)
    if not summaries:
        return StudyReport(table=None, missing=missing)
    failed = {run.name: describe_failure(run.folder) for run in runs if run.state == "failed"}
    without_metric = {
        f"{result.label}, seed {result.seed}": ", ".join(absent)
        for result in results
        if (absent := [name for name in summaries if not result.values(name)])
    }
    for run_name, names in without_metric.items():
        console.note(f"{run_name} has no value of {names}; the means of its arm are over the other seeds")
    primary, costs = next(iter(summaries)), {arm.label: count_cost(arm) for arm in study.arms}
    single = _describe_single_items(primary, results)
    tables = [_with_note(make_main_table(study.title, primary, summaries[primary], costs, results), single)]
    if len(summaries) > 1:
        tables.append(make_overview_table(study.title, summaries))
    if any(name for summary in summaries[primary] for name in summary.by_category):
        tables.append(make_category_table(study.title, primary, summaries[primary]))
    tables += make_problem_tables(failed, without_metric)
    write_text(out / "table.md", "\n".join(table.to_markdown() for table in tables))
    write_text(out / "table.csv", make_tidy_table(summaries).to_csv())
    write_text(out / "table.tex", latex_document(tables))
    write_json(out / "analysis.json", {"title": study.title, "measures": to_json(summaries), "failed": failed})
    write_figures(out / "figures", primary, summaries[primary], results, costs)
    table = _with_note(make_brief_table(study.title, primary, summaries[primary]), single)
    return StudyReport(table=table, summaries=summaries, missing=missing)


def _describe_single_items(metric: str, results: Sequence[RunResult]) -> str:
    """Say which categories have only one item with a value of the metric; empty if none has."""
    categories = {item: result.categories[item] for result in results for item in result.items.get(metric, ())}
    return describe_single_items(Counter(categories.values()))


def _with_note(table: Table, text: str) -> Table:
    return replace(table, note=f"{text} {table.note}".strip())


def _summarize(study: Study, results: Sequence[RunResult]) -> dict[str, list[ArmSummary]]:
    """Summarize every metric that at least one run has."""
    labels = [arm.label for arm in study.arms]
    measured = [metric for metric in study.metrics if any(result.values(metric.name) for result in results)]
    if results and (absent := [metric.name for metric in study.metrics if metric not in measured]):
        scalars = dict.fromkeys(name for result in results for name in result.scalar_metrics)
        available = f"validation logged only {', '.join(scalars)}" if scalars else "no run was validated"
        problem = f"the report omits {', '.join(absent)}, which no run has: {available}"
        console.note(f"{problem}. Correct `measure` in the study's file, or let the experiment validate its runs")
    return {metric.name: summarize_arms(metric, results, labels) for metric in measured}


def _describe_study(study: Study) -> dict[str, object]:
    return {
        "title": study.title,
        "stages": {name: str(file) for name, file in study.stages.items()},
        "seeds": study.seeds,
        "arms": [{"label": arm.label, "options": arm.options, "resolved": arm.resolved} for arm in study.arms],
        "measure": study.measure,
    }
