"""`kiwi doctor`: what is installed, which accelerators there are, what is missing and how to install it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kiwi import console
from kiwi.cli import parse
from kiwi.doctor import examine
from kiwi.options import Options


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Report what is installed, which accelerators there are, what is missing and how to install it.

    Args:
        json: print the report as JSON
    """

    json: bool = False


def main(argv: list[str]) -> int:
    """Print the report; the exit code is 0 if every required part fits, 1 otherwise."""
    options = parse(DoctorOptions, argv[0], argv[1:])
    record = examine()
    if options.json:
        console.print(json.dumps(record, indent=2))
    else:
        _print_report(record)
    return 0 if record["fits"] else 1


def _print_report(record: dict[str, Any]) -> None:
    parts = [
        (part["name"], part["wanted"], part["installed"] or "-", part["extra"] or "kiwi", part["state"])
        for part in record["parts"]
    ]
    console.table("Parts", ("part", "expected", "installed", "needed by", "state"), parts)
    hardware = record["hardware"]
    machine = [
        ("CPU", f"{hardware['cpu']}, {hardware['cores']} cores, bf16 {_yes_or_no(hardware['avx512_bf16'])}"),
        ("memory", _gigabytes(hardware["memory_bytes"])),
        ("free disk here", _gigabytes(record["disk_free_bytes"])),
    ]
    machine += [
        (device["kind"], f"{device['name']}, {_gigabytes(device['memory_bytes'])}, bf16 {_yes_or_no(device['bf16'])}")
        for device in record["devices"]
    ] or [("accelerator", "none: everything runs on the CPU")]
    console.table("Machine", ("", ""), machine)
    for part, command in record["fixes"].items():
        console.print(f"{part}: {command}")
    if record["fits"]:
        console.print("Every required part fits.")
    else:
        console.error("a required part is missing or does not fit; the commands above install what is missing.")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _yes_or_no(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]
