"""What may lie where a file or a folder is expected: damaged, endless, deep, linked, or something else."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

DEEP = 100_000
HUGE = "9" * 5000

CONTENTS: Mapping[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t\n",
    "no-utf8": b'{"schema_version": 1, "key": "\xff\xfe\x80"}',
    "cut-off": b'{"schema_version": 1, "cell": {"id": "x',
    "deep-list": b"[" * DEEP,
    "deep-object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep-closed": b"[" * DEEP + b"]" * DEEP,
    "deep-in-a-member": b'{"schema_version": 1, "cell": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "huge-number": f'{{"schema_version": {HUGE}, "plan_version": {HUGE}, "benchmarks": {HUGE}}}'.encode(),
    "huge-exponent": b'{"schema_version": 1e99999, "sitting_version": -1e99999}',
    "not-a-number": b'{"schema_version": NaN, "baseline_version": Infinity, "plan_version": -Infinity}',
    "half-a-character": b'{"schema_version": 1, "key": "\\ud800", "\\udfff": 1}',
    "nul": b"\0" * 1000,
    "a-list": b"[1, 2, 3]",
    "a-text": b'"text"',
    "null": b"null",
    "twice": b'{"schema_version": 1, "schema_version": 2}',
    "a-plan": json.dumps({"plan_version": 1, "scenario": "s", "cards": [], "cells": [{}]}).encode(),
    "toml-deep": b"a = " + b"[" * 5000 + b"]" * 5000,
    "toml-dotted": b".".join([b"a"] * 20_000) + b" = 1\n",
    "toml-number": b"a = " + HUGE.encode() + b"\n[models.m]\nrandom = 1e999\n",
    "toml-nan": b"[limits]\ntimeout_s = nan\n[training]\nlearning_rate = inf\n",
    "yaml-bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "yaml-deep": b"a: " + b"[" * 5000,
    "formula": b'=HYPERLINK("http://x"),\x1b[2J\r\n',
    "python": b"raise SystemExit(1)\n",
    "python-deep": b"x = " + b"(" * 5000 + b")" * 5000,
}
"""What a file may hold."""


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 43)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may be of a hundred characters only
        one.bind(path.name)
        os.chdir(here)


KINDS: Mapping[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "sparse": _sparse,
    "socket": _socket,
    "forbidden": lambda path: path.touch(mode=0),
    "in-a-file": lambda path: (path.parent / f"{path.stem}.plain").touch(),
}
"""What may lie in its place instead."""


def plant(path: Path, name: str) -> Path:
    """Make one of these at a path; return what to name."""
    if name in CONTENTS:
        path.write_bytes(CONTENTS[name])
        return path
    KINDS[name](path)
    return path.parent / f"{path.stem}.plain" / "inside.json" if name == "in-a-file" else path
