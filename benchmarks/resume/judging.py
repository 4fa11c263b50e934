"""Judge edits by a server that fails in many ways, kill the run repeatedly, and compare ledger and server log.

    python benchmarks/resume/judging.py --out runs/faults

A server on the loopback interface plays a model: of its answers, 10% are rate limits, 5% errors, 5% come too late, 5%
hold no scores, and 2% are cut off. `kiwi bench` asks it about items of the sandbox, is killed at random times, and is
rerun until every question has scores. Then every judgement in the ledger must be one that the server gave, with its
scores and tokens, and no answer may occur twice. Answers in flight at a kill are lost; they are counted.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kiwi import console
from kiwi.bench.ledger import Judgement, read_ledger
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from kiwi.tables import Table

FAULTS = {"rate limit": 0.10, "error": 0.05, "too late": 0.05, "no scores": 0.05, "cut off": 0.02}
"""Shares of the server's answers."""

CATEGORIES = ("local_change", "local_remove", "local_add", "background_change", "global_style")
TIMEOUT = 0.5
"""Seconds that the client waits for an answer."""

MAX_RUNS = 30
"""Maximum number of calls of the command."""


class FaultyModel(ThreadingHTTPServer):
    """The server. `log` holds the kind, the scores and the tokens of each answer, by the number in its text."""

    daemon_threads = True

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rng, self.lock, self.log = random.Random(seed), threading.Lock(), list[dict[str, Any]]()

    def next_answer(self) -> dict[str, Any]:
        """Choose and log the next answer."""
        with self.lock:
            kinds = [*FAULTS, "answer"]
            kind = self.rng.choices(kinds, [*FAULTS.values(), 1 - sum(FAULTS.values())])[0]
            entry = {
                "number": len(self.log), "kind": kind, "scores": [self.rng.randint(1, 5) for _ in range(3)],
                "prompt_tokens": self.rng.randint(900, 1100), "completion_tokens": self.rng.randint(40, 60),
            }  # fmt: skip
            self.log.append(entry)
            return entry


class _Handler(BaseHTTPRequestHandler):
    server: FaultyModel

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entry = self.server.next_answer()
        if entry["kind"] == "too late":
            time.sleep(2 * TIMEOUT)
        status = {"rate limit": 429, "error": 500}.get(entry["kind"], 200)
        body = json.dumps(_write_answer(entry, request) if status == 200 else {"error": {"message": "busy"}}).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "0.05")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client was killed, or no longer waits

    def log_message(self, *_: Any) -> None: ...


def _write_answer(entry: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    names = request["response_format"]["json_schema"]["schema"]["properties"]["scores"]["required"]
    scores = dict(zip(names, entry["scores"], strict=True))
    content = json.dumps({"reasons": f"Answer {entry['number']}.", "scores": scores})
    if entry["kind"] == "no scores":
        content = f"Answer {entry['number']}. The edit is fine, I would say."
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    if entry["kind"] == "cut off":
        choice |= {"finish_reason": "length", "message": {"role": "assistant", "content": content[:-4]}}
    usage = {name: entry[name] for name in ("prompt_tokens", "completion_tokens")}
    return {"object": "chat.completion", "model": "faulty", "choices": [choice], "usage": {**usage, "total_tokens": 0}}


def main() -> int:
    """Run the benchmark; returns exit code 1 if the ledger does not agree with the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data and run; must not exist")
    parser.add_argument("--items", type=int, default=100, help="number of items (default: 100)")
    parser.add_argument("--repeats", type=int, default=10, help="answers to each question (default: 10)")
    parser.add_argument("--kills", type=int, default=3, help="number of kills (default: 3)")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at the same time (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of faults and kills (default: 0)")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    export = SandboxExportOptions(
        out=options.out / "data", items=options.items, frames=5, size=32, categories=CATEGORIES, level="easy",
        split="test",
    )  # fmt: skip
    export_sandbox(export)
    videos = options.out / "videos"
    videos.mkdir()
    for target in (export.out / "videos").glob("*_target.mp4"):
        (videos / target.name.replace("_target", "_source_edited")).write_bytes(target.read_bytes())
    server = FaultyModel(options.seed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    prices = options.out / "prices.yaml"
    prices.write_text("faulty: {prompt: 1, answer: 10}\n")
    command = [sys.executable, "-m", "kiwi", "bench", "openve", "--data", str(export.out), "--videos", str(videos)]
    command += ["--judge", f"openai:faulty@http://127.0.0.1:{server.server_port}/v1", "--prices", str(prices)]
    command += ["--judge-set", f"model.timeout={TIMEOUT}", "--controls", "0", "--no-gallery", "--tries", "3"]
    command += ["--repeats", str(options.repeats), "--concurrency", str(options.concurrency)]
    command += ["--out", str(options.out / "run")]
    runs = _run_until_complete(command, options)
    server.shutdown()
    return _compare(server, read_ledger(options.out / "run" / "judgements.jsonl"), options, runs)


def _run_until_complete(command: list[str], options: argparse.Namespace) -> int:
    """Rerun the command until it succeeds; the first calls are killed after a share of the questions."""
    rng, ledger = random.Random(options.seed), options.out / "run" / "judgements.jsonl"
    questions = options.items * options.repeats
    for number in range(1, MAX_RUNS + 1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number <= options.kills:
            share = rng.uniform(0.6, 1.0) * number / (options.kills + 1)
            while process.poll() is None and _count_lines(ledger) < share * questions:
                time.sleep(0.02)
            process.kill()
        code = process.wait()
        console.note(f"call {number}: exit code {code}, {_count_lines(ledger)} lines in the ledger")
        if code == 0:
            return number
    raise SystemExit(f"the run is not complete after {MAX_RUNS} calls")


def _count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _compare(server: FaultyModel, ledger: list[Judgement], options: argparse.Namespace, runs: int) -> int:
    """Print the table and return the exit code."""
    wrong, used = Counter[str](), Counter[int]()
    for judgement in ledger:
        if judgement.reply is None:
            wrong["no reply, but tokens"] += judgement.usage is not None
            continue
        match = re.search(r"Answer (\d+)\.", judgement.reply)
        if match is None or int(match[1]) >= len(server.log):
            wrong["invented"] += 1
            continue
        entry = server.log[int(match[1])]
        used[entry["number"]] += 1
        scores = None if judgement.scores is None else [int(score) for score in judgement.scores.values()]
        wrong["other scores"] += scores != (entry["scores"] if entry["kind"] == "answer" else None)
        counts = judgement.usage and (judgement.usage.prompt_tokens, judgement.usage.answer_tokens)
        wrong["other tokens"] += counts != (entry["prompt_tokens"], entry["completion_tokens"])
    wrong["used twice"] = sum(count - 1 for count in used.values())
    scored = Counter(judgement.key.text for judgement in ledger if judgement.scores is not None)
    wrong["scored twice"] = sum(count - 1 for count in scored.values())
    wrong["never scored"] = options.items * options.repeats - len(scored)
    answered = [entry for entry in server.log if entry["kind"] in ("answer", "no scores", "cut off")]
    lost = sum(entry["number"] not in used for entry in answered)
    wrong["lost without a kill"] = max(0, lost - options.kills * options.concurrency)
    kinds = Counter(entry["kind"] for entry in server.log)
    rows = [("requests to the server", len(server.log)), *sorted(kinds.items()), ("lines in the ledger", len(ledger))]
    rows += [("questions with scores", len(scored)), (f"calls of the command, {options.kills} killed", runs)]
    rows += [("answers in flight at a kill", lost), *((f"wrong: {name}", wrong[name]) for name in sorted(wrong))]
    console.table(Table("", ("", "number"), rows))
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
