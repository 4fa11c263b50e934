"""`kiwi doctor`: report installed packages, accelerators, and what is missing and how to install it."""

import json
from dataclasses import dataclass
from typing import Any

from kiwi import console
from kiwi.cli import parse
from kiwi.doctor import check_installation
from kiwi.options import Options
from kiwi.tables import Table


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Report installed packages, accelerators, and what is missing and how to install it.

    Args:
        json: print the report as JSON
    """

    json: bool = False


def main(argv: list[str]) -> int:
    """Print the report and return the exit code: 0 if all requirements are satisfied, 1 otherwise."""
    options = parse(DoctorOptions, argv[0], argv[1:])
    record = check_installation()
    if options.json:
        console.print(json.dumps(record, indent=2))
    else:
        _print_report(record)
    return 0 if record["ok"] else 1


def _print_report(record: dict[str, Any]) -> None:
    rows = [
        (item["name"], item["specifier"], item["installed"] or "-", item["extra"] or "kiwi", _describe_status(item))
        for item in record["dependencies"]
    ]
    header = ("package", "expected", "installed", "required by", "status")
    console.table(Table("Requirements", header, rows))
    hardware = record["hardware"]
    machine = [
        ("CPU", f"{hardware['cpu']}, {hardware['cores']} cores, bf16 {_yes_or_no(hardware['avx512_bf16'])}"),
        ("memory", _gigabytes(hardware["memory_bytes"])),
        ("free disk space", _gigabytes(record["disk_free_bytes"])),
    ]
    machine += [
        (device["kind"], f"{device['name']}, {_gigabytes(device['memory_bytes'])}, bf16 {_yes_or_no(device['bf16'])}")
        for device in record["devices"]
    ] or [("accelerator", "none; kiwi runs on the CPU")]
    console.table(Table("Machine", ("", ""), machine))
    for name, command in record["fixes"].items():
        console.print(f"{name}: {command}")
    if record["ok"]:
        console.print("All requirements of kiwi are satisfied.")
    else:
        console.error("requirements are missing or have the wrong version; the commands above install them.")


def _describe_status(dependency: dict[str, Any]) -> str:
    is_optional = dependency["extra"] is not None and dependency["status"] == "missing"
    return "missing (optional)" if is_optional else str(dependency["status"])


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _yes_or_no(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]
