"""`python -m kiwi bench`: reports, resumed runs, comparison of runs and agreement with human raters."""

import csv
import json
import os
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from urllib.parse import unquote

import pytest

from kiwi.__main__ import main
from kiwi.bench import (
    AgreementOptions,
    BenchmarkOptions,
    CompareOptions,
    compare_runs,
    measure_agreement,
    run_benchmark,
)
from kiwi.bench.controls import CONTROL_KINDS
from kiwi.errors import KiwiError
from kiwi.media.run_dir import exclusive_lock

CLIPS = os.environ.get("KIWI_CLIPS")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def editor(runs):
    return str(runs / "editor" / "model")


@pytest.fixture(scope="module")
def run(editor, tmp_path_factory):
    """A finished run of ten items of the sandbox."""
    out = tmp_path_factory.mktemp("bench") / "run"
    options = ["--data", "sandbox", "--items", "10", "--level", "easy", "--model", editor, "--steps", "2"]
    assert main(["bench", "openve", *options, "--controls", "5", "--repeats", "2", "--out", str(out)]) == 0
    return out


def score_videos(run, videos, out, *options):
    """Score a folder of videos on the data of a finished run; returns the exit code."""
    words = ["bench", "openve", "--data", str(run / "data"), "--judge", "oracle", "--videos", str(videos)]
    return main([*words, "--out", str(out), *options])


def copy_videos(run, folder, count=10):
    """Copy the first edited videos of a run."""
    folder.mkdir(exist_ok=True)
    for video in sorted((run / "videos").iterdir())[:count]:
        shutil.copy(video, folder)
    return folder


def copy_targets(run, folder):
    """Copy the exact targets of all items under the names of edits."""
    folder.mkdir(exist_ok=True)
    for target in (run / "data" / "videos").glob("*_target.mp4"):
        shutil.copy(target, folder / target.name.replace("_target", "_source_edited"))
    return folder


def read_overall_difference(table):
    """Read the overall difference in the Markdown table of a comparison."""
    row = next(line for line in table.read_text().splitlines() if line.startswith("| overall"))
    return float(row.split("|")[3])


def lines(run):
    return [json.loads(line) for line in (run / "judgements.jsonl").read_text().splitlines()]


def test_an_editor_is_scored_with_controls_and_a_gallery(run):
    items = [line["asked"]["item"] for line in lines(run)]
    assert len([item for item in items if ":" not in item]) == 20
    assert {item.partition(":")[0] for item in items if ":" in item} == set(CONTROL_KINDS)
    assert len(list((run / "videos").glob("*_edited.mp4"))) == 10
    scores = list(csv.DictReader((run / "scores.csv").open()))
    assert len(scores) == 30
    assert {row["repeats"] for row in scores} == {"2"}
    report = (run / "report.md").read_text()
    assert "Coverage: 10 of 10" in report
    assert "The control 'wrong instruction' has no score: the oracle can only judge" in report
    assert "308 of OpenVE-Bench" in report
    assert json.loads((run / "environment.json").read_text())["kiwi"]
    page = (run / "gallery.html").read_text()
    cards = {kind: page.count(f'data-control="{kind}"') for kind in ("", *CONTROL_KINDS.values())}
    assert cards == {"": 10} | dict.fromkeys(CONTROL_KINDS.values(), 5)
    assert page.count("<video") == 60
    assert "Overall " in page
    assert "{&#34;scores&#34;: {&#34;Instruction Compliance&#34;" in page


def test_an_editor_that_scores_no_better_than_its_controls_is_reported_with_a_warning(run):
    assert "**Warning.** The control" in (run / "report.md").read_text()


def test_a_rerun_asks_no_scored_question_again_and_writes_the_same_report(run, editor, capsys):
    before, report = (run / "judgements.jsonl").read_bytes(), (run / "report.md").read_text()
    options = ["--data", "sandbox", "--items", "10", "--level", "easy", "--model", editor, "--steps", "2"]
    assert main(["bench", "openve", *options, "--controls", "5", "--repeats", "2", "--out", str(run)]) == 0
    assert "all answers of oracle are in the ledger" in capsys.readouterr().err
    added = [json.loads(line) for line in (run / "judgements.jsonl").read_bytes()[len(before) :].splitlines()]
    assert all(line["scores"] is None for line in added)  # questions that the oracle cannot judge are asked again
    assert (run / "report.md").read_text() == report


def test_anchors_are_judged_again_from_the_second_run_on(run, tmp_path, capsys):
    options = ["--no-gallery", "--controls", "0", "--anchors", "3", "--metrics", "basic"]
    assert score_videos(run, run / "videos", tmp_path / "run", *options) == 0
    first = capsys.readouterr()
    assert "no anchors: this folder holds no earlier judgements" in " ".join(first.err.split())
    assert "Metrics beside the judge's scores" in first.out
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith("metric,items,")
    assert score_videos(run, run / "videos", tmp_path / "run", *options) == 0
    assert "Anchors: 3 items judged again; their scores changed by 0.00" in " ".join(capsys.readouterr().err.split())


def test_parts_generate_videos_and_a_run_without_part_judges_them(editor, tmp_path, capsys):
    options = ["--data", "sandbox", "--items", "4", "--level", "easy", "--model", editor, "--steps", "1"]
    options += ["--out", str(tmp_path / "run"), "--no-gallery"]
    assert main(["bench", "openve", *options, "--part", "2/2"]) == 0
    assert len(list((tmp_path / "run" / "videos").iterdir())) == 2
    assert not (tmp_path / "run" / "report.md").exists()
    assert main(["bench", "openve", *options, "--part", "1/2"]) == 0
    assert main(["bench", "openve", *options, "--controls", "0"]) == 0
    assert "4 of 4" in capsys.readouterr().out


def test_a_folder_of_videos_is_scored_and_missing_ones_are_reported(run, tmp_path, capsys):
    videos, out = copy_videos(run, tmp_path / "mine", 7), tmp_path / "run"
    assert score_videos(run, videos, out) == 1
    terminal = capsys.readouterr().out
    assert "3 of 10 items have no score, so there is no overall score (--allow-partial" in terminal
    assert terminal.count("_edited.mp4 does not exist (1)") == 3
    assert "_edited.mp4 does not exist" in (out / "report.md").read_text()
    assert score_videos(run, videos, out, "--allow-partial") == 0
    assert "7 of 10" in (out / "report.md").read_text()


def test_an_unreadable_edit_leaves_only_its_own_item_without_a_score(run, tmp_path):
    videos = copy_videos(run, tmp_path / "mine")
    broken = sorted(videos.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:300])
    assert score_videos(run, videos, tmp_path / "run") == 1
    report = (tmp_path / "run" / "report.md").read_text()
    assert "1 of 10 items have no score" in report
    assert f"| {broken.stem.removesuffix('_edited')} |" in report


def test_a_comparison_uses_the_scores_in_the_reports(run, tmp_path, capsys):
    """The ledger may also hold judgements of other edits under the same names."""
    videos, options = tmp_path / "mine", ["--no-gallery", "--controls", "0", "--repeats", "2"]
    assert score_videos(run, copy_videos(run, videos), tmp_path / "a", *options) == 0
    assert score_videos(run, videos, tmp_path / "b", *options) == 0
    assert score_videos(run, copy_targets(run, videos), tmp_path / "b", *options) == 0
    assert score_videos(run, copy_videos(run, videos), tmp_path / "b", *options) == 0
    capsys.readouterr()
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.md")]) == 0
    assert read_overall_difference(tmp_path / "c.md") == 0


def test_there_is_no_overall_difference_below_full_coverage(run, tmp_path, capsys):
    assert score_videos(run, copy_videos(run, tmp_path / "mine", 7), tmp_path / "some", "--no-gallery") == 1
    capsys.readouterr()
    compare = ["bench", "compare", str(run), str(tmp_path / "some"), "--out", str(tmp_path / "c.md")]
    assert main(compare) == 0
    assert "only 7 of 10 items" in capsys.readouterr().out
    assert "| overall" not in (tmp_path / "c.md").read_text()
    assert main([*compare, "--allow-partial"]) == 0
    assert "| overall | 7 |" in (tmp_path / "c.md").read_text()


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (b"", "empty-file"),
        (b"item,dimension,score\n\xe4,b,3\n", "unreadable-file"),
        (b"item,dimension,score\nnobody,Instruction Compliance,3\n", "unknown-item"),
        (b"item,dimension,score\n" + 2 * b"ITEM,Instruction Compliance,3\n", "duplicate-rating"),
        (b"item,dimension,score,rater\nITEM,Instruction Compliance,3,oracle\n", "duplicate-rater"),
        (b"item,dimension,score\nITEM,Instruction Compliance,nan\n", "invalid-rating"),
        (b"item,score\nITEM,3\n", "invalid-rating"),
    ],
)
def test_unusable_labels_are_rejected(run, tmp_path, labels, code):
    item = next(csv.DictReader((run / "scores.csv").open()))["item"]
    (tmp_path / "labels.csv").write_bytes(labels.replace(b"ITEM", item.encode()))
    with pytest.raises(KiwiError, check=lambda error: error.code == code):
        measure_agreement(AgreementOptions(runs=(run,), labels=tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        ({"repeats": 0}, "out-of-range", "--repeats"),
        ({"controls": -1}, "out-of-range", "--controls"),
        ({"concurrency": 0}, "out-of-range", "--concurrency"),
        ({"per_minute": 1e-320}, "out-of-range", "--per-minute"),
        ({"part": "3/2"}, "out-of-range", "--part"),
        ({"model": "a", "videos": Path()}, "conflicting-options", "--model and --videos"),
        ({"videos": Path(), "steps": 3}, "unused-option", "--steps"),
        ({"videos": Path(), "part": "1/2"}, "unused-option", "--part"),
        ({"data": "data", "level": "easy"}, "unused-option", "--level"),
    ],
)
def test_options_are_rejected_and_named_when_they_are_built(options, code, named):
    with pytest.raises(KiwiError, match=named, check=lambda error: error.code == code):
        BenchmarkOptions(suite="openve", **options)


def test_runs_are_compared_and_agreement_with_human_raters_is_measured(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert score_videos(run, copy_targets(run, tmp_path / "targets"), other, "--no-gallery") == 0
    capsys.readouterr()
    assert main(["bench", "compare", str(run), str(other), "--out", str(tmp_path / "compared.md")]) == 0
    assert read_overall_difference(tmp_path / "compared.md") > 2
    labels = tmp_path / "labels.csv"
    scored = list(csv.DictReader((other / "scores.csv").open()))
    ratings = [
        f"{r['item']},{r['dimension']},{5 if 'test' in r['item'] else 1},{name}" for r in scored for name in "ab"
    ]
    labels.write_text("\n".join(["item,dimension,score,rater", *ratings]))
    assert main(["bench", "agreement", str(other), str(run), "--labels", str(labels)]) == 0
    assert "human mean" in capsys.readouterr().out
    labels.write_text("item,dimension,score\na,b,9\n")
    assert main(["bench", "agreement", str(other), "--labels", str(labels)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_runs_of_different_judges_are_not_comparable(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    record["version"] = "world 99"
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(KiwiError, check=lambda error: error.code == "not-comparable"):
        compare_runs(CompareOptions(a=run, b=other))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["openve"], "data/openve"),
        (["openve"], "--data"),
        (["openve", "--data", "{data}", "--videos", "."], "GEMINI_API_KEY"),
        (["openve", "--data", "{data}", "--judge", "oracle", "--model", "x"], "no model folder at x"),
        (["openve", "--data", "{data}", "--judge", "oracle"], "--videos"),
        (["openve", "--data", "{data}", "--judge", "oracle", "--videos", "nowhere"], "nowhere"),
        (["openve", "--data", "{data}", "--judge", "gpt", "--videos", "."], "oracle (for --data sandbox)"),
        (["openve", "--data", "sandbox", "--part", "3/2"], "--part"),
        (["openve", "--data", "sandbox", "--metrics", "bogus"], "--metrics has no metric 'bogus'"),
        (["openve", "--data", "sandbox", "--videos", "nowhere"], "--videos nowhere"),
        (["openve", "--data", "sandbox", "--rubrics", "{data}/world.json"], "--rubrics"),
        (["openve", "--data", "sandbox", "--rubrics", "nofile"], "--rubrics file nofile does not exist"),
        (["openve", "--data", "sandbox", "--rubrics", "."], "not a --rubrics file"),
        (["openve", "--data", "sandbox", "--judge", "replay:nope"], "nope"),
        (["openve", "--data", "{data}", "--judge", "oracle", "--model", "./nope"], "nope"),
        (["openve", "--data", "sandbox", "--out", "x" * 300], "too long"),
        (["compare", ".", "."], "run.json"),
        (["rubrics", "import", "nothing.py"], "nothing.py"),
    ],
)
def test_unusable_options_are_rejected_and_named_and_nothing_is_written(
    run, tmp_path, monkeypatch, capsys, options, named
):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *(option.format(data=run / "data") for option in options)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert named in message
    assert message.count("Fix:") <= 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_run_is_not_touched(run, tmp_path, capsys):
    report = (run / "report.md").read_text()
    assert score_videos(run, run / "videos", run, "--name", "another") == 2
    assert "title another" in " ".join(capsys.readouterr().err.split())
    assert (run / "report.md").read_text() == report


@pytest.mark.parametrize("changed", [("--items", "9"), ("--items", "11"), ("--level", "middle")])
def test_a_run_with_other_items_is_rejected_and_named_before_its_data_is_rendered(run, editor, changed, capsys):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    options = {"--items": "10", "--level": "easy", changed[0]: changed[1]}
    words = [word for option in options.items() for word in option]
    assert main(["bench", "openve", "--data", "sandbox", *words, "--model", editor, "--out", str(run)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"Got: {changed[0][2:]} {changed[1]}. Expected: {changed[0][2:]}" in message
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_no_data_is_rendered_into_a_folder_of_other_files_or_of_a_running_command(run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(KiwiError, check=lambda error: error.code == "occupied-folder"):
        run_benchmark(BenchmarkOptions(suite="openve", data="sandbox", out=tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with exclusive_lock(run), pytest.raises(KiwiError, check=lambda error: error.code == "locked-folder"):
        run_benchmark(BenchmarkOptions(suite="openve", data="sandbox", items=9, out=run))


@pytest.mark.skipif(CLIPS is None, reason="KIWI_CLIPS names no folder of clips")
def test_real_clips_are_scored_from_a_replayed_ledger(tmp_path, capsys):
    data = Path(str(CLIPS)) / "openve-mini"
    (tmp_path / "empty.jsonl").touch()
    options = ["bench", "openve", "--data", str(data), "--videos", str(data / "edited"), "--no-gallery"]
    out = tmp_path / "empty"
    assert main([*options, "--judge", f"replay:{tmp_path / 'empty.jsonl'}", "--out", str(out), "--allow-partial"]) == 1
    report = (out / "report.md").read_text()
    assert "Coverage: 0 of 10" in report
    assert "Not scored: category creative_edit, 1 in the data" in report
    assert "(raw, 0 of 10) | replay | - | - | - | - | - | - |" in report
    ledger = tmp_path / "recorded.jsonl"
    recorded = []
    for number, line in enumerate(lines(out)):
        assert line["scores"] is None
        line["asked"] |= {"judge": "gemini-2.5-pro", "version": "recorded"}
        names = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
        line.pop("checksum")
        line["reply"] = "\n".join(f"**{name}:** {1 + (number + k) % 5}/5" for k, name in enumerate(names))
        recorded.append(json.dumps(line))
    ledger.write_text("\n".join(recorded) + "\n")
    assert main([*options, "--judge", f"replay:{ledger}", "--out", str(tmp_path / "replayed"), "--controls", "0"]) == 0
    report = (tmp_path / "replayed" / "report.md").read_text()
    assert "Coverage: 10 of 10" in report
    assert "| openve-mini/edited (raw) | gemini-2.5-pro |" in report


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_report_compiles(run, tmp_path):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}"]
    done = subprocess.run([*command, str(run / "report.tex")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


PROBE = """
<script>
window.addEventListener("load", async () => {
  const at = (id) => document.getElementById(id);
  const visible = () => [...document.querySelectorAll("article:not([hidden])")];
  const set = (id, value, event = "change") => { at(id).value = value; at(id).dispatchEvent(new Event(event)); };
  const sleep = (time) => new Promise((done) => setTimeout(done, time));
  const result = {all: visible().length};
  set("category", "local_add");
  result.filtered = visible().map((card) => card.dataset.category);
  set("category", "");
  set("words", SEARCHED, "input");
  result.words = visible().length;
  set("words", "", "input");
  set("low", "1.01");
  result.good = visible().length;
  set("low", "1");
  set("sort", "best");
  result.best = visible().map((card) => Number(card.dataset.mean));
  set("control", "degraded");
  result.controls = visible().map((card) => card.dataset.control);
  set("control", "");
  at("play").click();
  const videos = visible().flatMap((card) => [...card.querySelectorAll("video")]);
  const plays = (video) => !video.paused && video.readyState > 1 && video.videoWidth > 0;
  const moved = (video) => video.currentTime > 0 || video.played.length > 0;
  for (let tries = 0; tries < 100 && !videos.every((video) => plays(video) && moved(video)); tries++) await sleep(300);
  result.playing = videos.filter(plays).length;
  result.moved = videos.filter(moved).length;
  at("play").click();
  result.stopped = videos.filter((video) => video.paused).length;
  location.href = "/result?" + encodeURIComponent(JSON.stringify(result));
});
</script>
"""


def run_probe(page: bytes, profile: Path) -> dict:
    """Open a page with PROBE in Chromium; return the result, which the page sends back as the query of an address."""
    results: Queue[str] = Queue()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/result?"):
                results.put(unquote(self.path.partition("?")[2]))
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        browser = subprocess.Popen(
            [*command, f"http://127.0.0.1:{server.server_port}/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            return json.loads(results.get(timeout=100))
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_gallery_filters_sorts_and_plays(run, tmp_path):
    words = {line["asked"]["item"]: line["asked"]["instruction"] for line in lines(run)}
    words = [text for item, text in words.items() if ":" not in item]
    page = (run / "gallery.html").read_text() + PROBE.replace("SEARCHED", json.dumps(words[0].upper()))
    result = run_probe(page.encode(), tmp_path / "profile")
    assert result["all"] == len(words) == 10
    assert result["filtered"] == ["local_add"] * 2
    assert result["words"] == sum(words[0] in text for text in words) < 10
    assert result["good"] < 10
    assert result["controls"] == ["degraded"] * 5
    assert result["best"] == sorted(result["best"], reverse=True)
    assert (result["playing"], result["moved"], result["stopped"]) == (20, 20, 20)
