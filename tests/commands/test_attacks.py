"""A gate attacked: by questions left out, by links planted where it writes, by what never ends."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.io import make_folder
from bench.records.records import EvaluationItem, Record
from bench.records.store import open_folder, write_record
from command_lines import CommandLine
from sittings_factory import make_runs, write_sitting

Items = Sequence[EvaluationItem]

SCENARIO = """
title = "t"
device = "cpu"
[models.m]
random = "tiny-llama-test"
[methods.lora]
[data]
source = "jsonl"
path = "rows.jsonl"
[training]
sequence_length = 16
"""


def answering(keep: Callable[[Items], Items]) -> list[Record]:
    """Return runs whose evaluation holds what is kept of its questions."""
    made = []
    for record in make_runs():
        (reading,) = record.measurement.evaluations
        changed = reading.replace(items=tuple(keep(reading.items)))
        made.append(record.replace(measurement=record.measurement.replace(evaluations=(changed,))))
    return made


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda items: [item for item in items if item.correct], "50 missing of 200"),
        (lambda items: items[:100], "100 missing of 200"),
        (lambda items: [*items, EvaluationItem(200, "f" * 64, correct=True)], "1 added of 200"),
        (lambda items: [*items[:-1], EvaluationItem(199, "f" * 64, correct=True)], "1 changed of 200"),
        (lambda items: [EvaluationItem(i.doc_id + 7, i.doc_hash, correct=True) for i in items], "changed"),
        (lambda items: items[:1], "199 missing of 200"),
    ],
)
def test_a_candidate_that_was_asked_other_questions_does_not_pass(
    bench: CommandLine, tmp_path: Path, keep: Callable[[Items], Items], said: str
) -> None:
    """What is left of them would show it perfect; how many are not the same is said."""
    write_sitting(tmp_path / "session", make_runs(), answering(keep))
    answer = bench(tmp_path, "gate", "session")
    assert answer.returncode == 3
    assert said in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "easier"}, "not evaluated in the candidate"),
        ({"metric": "acc_norm"}, "metric acc before, acc_norm now"),
        ({"num_fewshot": 5}, "num_fewshot 0 before, 5 now"),
        ({"instrument": "lm-eval 9"}, "instrument lm-eval 0.4.13 before, lm-eval 9 now"),
        ({"when": "before"}, "not evaluated in the candidate"),
    ],
)
def test_a_candidate_that_was_asked_otherwise_does_not_pass(
    bench: CommandLine, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    """All answers right, of another task, metric, number of examples or lm-eval, or of another time."""
    right = answering(lambda items: [item.replace(correct=True) for item in items])
    for place, record in enumerate(right):
        (reading,) = record.measurement.evaluations
        measurement = record.measurement.replace(evaluations=(reading.replace(**changes),))
        right[place] = record.replace(measurement=measurement)
    write_sitting(tmp_path / "session", make_runs(), right)
    answer = bench(tmp_path, "gate", "session")
    assert answer.returncode == 3
    assert said in " ".join(answer.stdout.split())


def test_the_same_questions_in_another_order_are_the_same(bench: CommandLine, tmp_path: Path) -> None:
    """They are joined by their numbers."""
    write_sitting(tmp_path / "session", make_runs(), answering(lambda items: items[::-1]))
    assert 0 == bench(tmp_path, "gate", "session").returncode


def test_right_answers_that_are_repeated_are_no_record(bench: CommandLine, tmp_path: Path) -> None:
    """The files are named as damaged, and nothing passes without them."""
    write_sitting(tmp_path / "session", make_runs(), make_runs())
    for path in (tmp_path / "session" / "candidate").glob("*.json"):
        stored = json.loads(path.read_text())
        (reading,) = stored["measurement"]["evaluations"]
        reading["items"] += [item for item in reading["items"] if item["correct"]]
        path.write_text(json.dumps(stored))
    answer = bench(tmp_path, "gate", "session", "--json")
    assert answer.returncode in {3, 4}
    assert "twice" in answer.stdout


def link(*parts: str) -> Callable[[Path], None]:
    """Return what plants a link from the first path to the second."""

    def plant(folder: Path) -> None:
        place = folder / parts[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder / parts[1])

    return plant


ACCEPT = "baseline accept records --name b --reason r"


@pytest.mark.parametrize(
    ("plant", "line", "code"),
    [
        (link("results", "outside"), ACCEPT, 4),
        (link("results/baselines", "outside"), ACCEPT, 4),
        (link("results/baselines/b", "outside"), ACCEPT, 2),
        (link("results/baselines/b/0001", "outside"), ACCEPT, 0),
        (link("results/baselines/b/baseline.json", "outside/mine"), ACCEPT, 2),
        (link("results/baselines/b/baseline.json", "outside/absent"), ACCEPT, 2),
        (link("t.csv", "outside/mine"), "table records -o t.csv", 0),
        (link("t.tex", "outside/absent"), "table records -o t.tex", 0),
        (link("steps.json", "outside/mine"), "export records -o steps.json", 0),
        (link("page.md", "outside/mine"), "report records -o page.md", 0),
        (link("v.json", "outside/mine"), "gate session -o v.json", 0),
        (link("c.md", "outside/mine"), "gate session --comment c.md", 0),
        (link("j.xml", "outside/absent"), "gate session --junit j.xml", 0),
        (link("new.toml", "outside/absent"), "init --from theirs.yml -o new.toml", 0),
    ],
)
def test_no_planted_link_leads_a_writer_outside(
    bench: CommandLine, tmp_path: Path, plant: Callable[[Path], None], line: str, code: int
) -> None:
    """A link in the place of a file is replaced, one above it refused; what it leads to stays as it was."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    (tmp_path / "theirs.yml").write_text("base_model: a/b\nmicro_batch_size: 1\nadapter: lora\n")
    for record in make_runs():
        write_record(tmp_path / "records", record)
    write_sitting(tmp_path / "session", make_runs(), make_runs())
    plant(tmp_path)
    answer = bench(tmp_path, *line.split())
    assert answer.returncode == code, answer
    assert {path.name: path.read_text() for path in (tmp_path / "outside").iterdir()} == {"mine": "mine"}


def test_no_link_inside_a_folder_of_results_is_followed_by_a_record(tmp_path: Path) -> None:
    """Neither the lock, nor a side of a session, nor what lies below a link."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "base").symlink_to(tmp_path / "outside")
    with pytest.raises(Exception, match="base is a link"):
        write_record(tmp_path / "session" / "base" / "warm-up", make_runs()[0], under=tmp_path)
    with pytest.raises(OSError, match="base is a link"):
        make_folder(tmp_path / "session" / "base", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".lock").symlink_to(tmp_path / "outside" / "lock")
    with pytest.raises(Exception, match="cannot write"), open_folder(tmp_path / "results"):
        pass
    assert list((tmp_path / "outside").iterdir()) == []


def endless(path: Path) -> None:
    """Make a file of one row and eight terabytes of nothing."""
    with path.open("wb") as file:
        file.write(b'{"prompt": "a", "completion": "b"}\n')
        file.truncate(1 << 43)


def linked_pipe(path: Path) -> None:
    """Make a link to a pipe."""
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        linked_pipe,
        endless,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/random"),
        lambda path: path.symlink_to("/proc/kmsg"),
    ],
)
@pytest.mark.parametrize(
    "command", ["cells s.toml --check", "run s.toml", "gate s.toml --base .", "calibrate s.toml"]
)
def test_data_that_never_ends_is_refused_before_anything_waits_for_it(
    bench: CommandLine, tmp_path: Path, make: Callable[[Path], object], command: str
) -> None:
    """Pipes, devices and holes in files: the parent reads them, outside every limit of a worker."""
    (tmp_path / "s.toml").write_text(SCENARIO)
    make(tmp_path / "rows.jsonl")
    answer = bench(tmp_path, *command.split())
    assert answer.returncode == 2
    assert "rows.jsonl" in answer.stderr
