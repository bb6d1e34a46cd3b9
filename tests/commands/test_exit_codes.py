"""Exit code 1 means a regression and nothing else, whatever lies where a command expects a file."""

import inspect
import itertools
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bench.cli import app
from bench.commands.compare import baseline_app
from bench.records.store import write_record
from command_lines import Answer, CommandLine
from nasty_files import CONTENTS, KINDS, plant
from replay_bench import FULL
from sittings_factory import make_runs, write_sitting

SCENARIO = """
title = "t"
device = "cuda"
[models.m]
random = "tiny-llama-test"
[methods.lora]
[data]
source = "synthetic"
[training]
sequence_length = 16
"""

LINES = [
    "plan {toml}",
    "cells {toml}",
    "cells --check {data}",
    "plan good.toml --tokens 1M --prices {toml}",
    "fit {model} --gpu rtx4090",
    "fit {json} --gpu rtx4090",
    "run {toml}",
    "run {data}",
    "init --from {yml} -o new.toml",
    "init {model} -o new.toml",
    "plan {toml} --prices {toml}",
    "init --from good.yml -o {toml}",
    "report {json}",
    "report {records}",
    "report records -o {md}",
    "report records -o {html}",
    "report records --figures {json}",
    "report --site {json}",
    "table {json}",
    "table {records}",
    "table records -o {csv}",
    "export {json} -o steps.json",
    "export {records} -o steps.json",
    "export records -o {json}",
    "export {records} --to tensorboard -o {json}",
    "compare {json} records",
    "compare records {records}",
    "compare records records --scenario {toml}",
    "compare records records -o {json}",
    "claims {json}",
    "claims {records}",
    "validate {toml}",
    "validate absent.toml -o {json}",
    "gate {json}",
    "gate {session}",
    "gate session -o {json} --comment {md} --junit {xml}",
    "gate {toml} --base .",
    "gate good.toml --base {json}",
    "gate good.toml --base . --calibration {json}",
    "gate good.toml --base . --resume --results {sessions}",
    "gate {json} --baseline b",
    "gate records --baseline b --baselines {baselines}",
    "gate records --baseline b --scenario {toml}",
    "calibrate {toml}",
    "calibrate {toml} --results {json}",
    "baseline accept {records} --name n --reason r --baselines accepted",
    "baseline accept records --name b --reason r --baselines {baselines}",
    "baseline list --baselines {baselines}",
    "baseline list --baselines {json}",
    "baseline show b --baselines {baselines}",
    "baseline diff b --baselines {baselines} -o {json}",
    "baseline history b --baselines {baselines}",
]

SLOW_LINES = [
    "plan {data}",
    "watch {py} --results watched",
    "watch x.py --results {json}",
    "run good.toml --results {json}",
]
"""Those that start workers to know the answer."""

NO_FILES = {"doctor", "schema"}
NAMES = {"origin": ("--from",)}

EVERY = [(name, line) for name in (*CONTENTS, *KINDS) for line in LINES]
CHOSEN = EVERY if FULL else random.Random(15).sample(EVERY, 120)
SLOW = list(itertools.product((*CONTENTS, *KINDS), SLOW_LINES)) if FULL else [("folder", SLOW_LINES[0])]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with what is sound: a scenario, records, a session."""
    (tmp_path / "good.toml").write_text(SCENARIO)
    (tmp_path / "good.yml").write_text("base_model: a/b\nmicro_batch_size: 1\n")
    for record in make_runs():
        write_record(tmp_path / "records", record)
    write_sitting(tmp_path / "session", make_runs(), make_runs())
    return tmp_path


def planted(folder: Path, name: str) -> Mapping[str, Path]:
    """Plant one thing wherever a command may look for a file; return what to name."""

    def at(path: str) -> Path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        return plant(folder / path, name)

    paths = {
        ending: at(f"x.{ending}") for ending in ["json", "toml", "py", "yml", "csv", "md", "html", "xml"]
    }
    folders: dict[str, Callable[[], object]] = {
        "records": lambda: at("records/x--12345678--r1.json"),
        "session": lambda: at("session/sitting.json"),
        "sessions": lambda: at("sessions/2026/sitting.json"),
        "baselines": lambda: at("baselines/b/baseline.json"),
        "model": lambda: [at(f"model/{file}") for file in ("config.json", "tokenizer.json", "w.safetensors")],
    }
    for each, make in folders.items():
        make()
        paths[each] = folder / each
    paths["data"] = folder / "data.toml"
    rows = f'source = "jsonl"\npath = "{paths["json"]}"'
    paths["data"].write_text(SCENARIO.replace('source = "synthetic"', rows))
    return paths


def assert_told(answer: Answer) -> None:
    """Not 1, not a defect; what is wrong is said in sentences that can be shown."""
    assert answer.returncode in {0, 2, 3, 4}, answer
    assert "Traceback" not in answer.stderr
    assert answer.stderr.strip() or answer.returncode in {0, 3}
    assert all(line.isprintable() and len(line) < 3000 for line in answer.stderr.splitlines())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "line"), [*CHOSEN, *SLOW])
def test_no_file_makes_it_a_regression_or_a_traceback(
    bench: CommandLine, place: Path, name: str, line: str
) -> None:
    """Damaged, deep, endless, a pipe, a device, a link to nowhere: a sentence, and neither 1 nor 70."""
    paths = planted(place / "x", name)
    assert_told(bench(place, *(word.format(**paths) for word in line.split())))
    for path in paths.values():
        if path.is_file() and path.stat().st_size > 1 << 40:
            path.unlink()
    shutil.rmtree(place / "x")


@pytest.mark.parametrize("command", ["report", "claims", "table"])
def test_a_name_that_no_file_can_have_is_the_users_mistake(
    bench: CommandLine, tmp_path: Path, command: str
) -> None:
    """Which the sentence does not repeat in full."""
    answer = bench(tmp_path, command, "a" * 5000)
    assert answer.returncode == 2
    assert "is too long for a path" in answer.stderr
    assert len(answer.stderr) < 200


def test_every_command_and_every_file_it_takes_is_among_them() -> None:
    """A new command, or a new option that takes a path, needs a line here."""
    lines = [*LINES, *SLOW_LINES]
    missing = []
    for above, group in (("", app), ("baseline ", baseline_app)):
        for command in group.registered_commands:
            assert command.callback is not None
            name = above + (command.name or command.callback.__name__)
            own = [line.split() for line in lines if line.startswith(f"{name} ")]
            if name not in NO_FILES and not own:
                missing.append(name)
            for option in inspect.signature(command.callback).parameters.values():
                spelt = {
                    f"--{option.name.replace('_', '-')}",
                    f"-{option.name[0]}",
                    *NAMES.get(option.name, ()),
                }
                takes_path = "Path" in str(option.annotation) and "Option" in str(option.annotation)
                if takes_path and not any(spelt.intersection(words) for words in own):
                    missing.append(f"{name} --{option.name}")
    assert missing == []


@pytest.mark.skipif(not FULL, reason="looks at the machine, which takes half a minute; set FAULTS=full")
@pytest.mark.parametrize("line", sorted(NO_FILES))
def test_those_that_take_no_file_end_well(bench: CommandLine, place: Path, line: str) -> None:
    """They have no way to a regression."""
    assert bench(place, line).returncode == 0
