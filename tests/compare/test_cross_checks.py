"""What a side reports is held against the gate's own clock, its look at memory, and the same batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.compare.cross_checks import contradictions, outside_the_window
from bench.compare.gate_report import judge_records
from bench.records.readings import Caveat
from bench.records.records import NS_PER_SECOND, Record
from bench.records.sessions import JUDGED_BY_ITSELF, SittingRecords, load_sitting
from bench.report.gate import opening
from sittings_factory import MIB, make_runs, write_sitting

HONEST_S = 11.5
HELD_BYTES = 1990 * MIB


def session(
    folder: Path,
    candidate: Sequence[Record],
    *,
    seconds: float = HONEST_S,
    held_bytes: int = HELD_BYTES,
    by_itself: bool = False,
) -> SittingRecords:
    """Return a session of honest base runs and these, of which the gate has seen so much."""
    loaded = load_sitting(write_sitting(folder, make_runs(), candidate))
    seen: dict[str, tuple[float, int]] = {
        "base": (HONEST_S, HELD_BYTES),
        "candidate": (seconds, held_bytes),
    }
    runs = tuple(
        run.model_copy(
            update={
                "seen_ns": round(seen[run.side][0] * NS_PER_SECOND),
                "seen_peak_bytes": seen[run.side][1],
            }
        )
        for run in loaded.sitting.runs
    )
    caveats = [Caveat(JUDGED_BY_ITSELF, "bench judged by itself.")] if by_itself else []
    changes: dict[str, Any] = {"runs": runs, "caveats": tuple(caveats), "judge": "finetune-bench 1 (abc)"}
    return replace(loaded, sitting=loaded.sitting.model_copy(update=changes))


def with_tokens(runs: Sequence[Record], factor: int) -> list[Record]:
    """Return runs that count their tokens so many times."""

    def told(record: Record) -> Record:
        steps = tuple(
            step.replace(tokens=step.tokens.replace(non_padding=step.tokens.non_padding * factor))
            for step in record.measurement.steps
        )
        return record.replace(measurement=record.measurement.replace(steps=steps))

    return [told(record) for record in runs]


def test_an_honest_session_is_not_contradicted(tmp_path: Path) -> None:
    """Nor is one that took longer, or held more, by what looking costs."""
    loaded = session(tmp_path, make_runs(), seconds=HONEST_S + 1, held_bytes=HELD_BYTES + MIB, by_itself=True)
    assert ({}, []) == (contradictions(loaded), list(outside_the_window(loaded)))
    assert "pass" == judge_records(loaded).verdict


def test_tokens_that_are_counted_twice_are_not_compared(tmp_path: Path) -> None:
    """A speed of more tokens in the same batches is no gain; nor is a little more than a batch holds."""
    loaded = session(tmp_path, with_tokens(make_runs(), 2))
    assert "cannot be" in contradictions(loaded)["tiny/a", "speed"]
    verdicts = judge_records(loaded)
    speed = next(one for one in verdicts.gated if one.metric == "tokens_per_second")
    assert ("not comparable", 3) == (speed.verdict, verdicts.exit_code())


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"seconds": 30.0}, "speed", "it took 18.7 s more by the gate's clock"),
        ({"held_bytes": 2400 * MIB}, "memory", "and the gate saw 2.34"),
    ],
)
def test_what_a_side_leaves_out_is_seen(
    changes: dict[str, Any], kind: str, said: str, tmp_path: Path
) -> None:
    """Time by a clock of its own, memory by a process that held more than it says."""
    loaded = session(tmp_path, make_runs(), **changes)
    found = contradictions(loaded)
    assert [("tiny/a", kind)] == list(found)
    assert said in found["tiny/a", kind]  # type: ignore[index] # a literal of the test's table
    assert "inconclusive" == judge_records(loaded).verdict


def test_memory_that_its_own_ledger_leaves_out_counts_against_a_bench(tmp_path: Path) -> None:
    """Even where its process says as much as the gate sees: less than it says, more than the base's."""
    low = session(tmp_path / "low", make_runs(), by_itself=True)
    runs = tuple(
        run.model_copy(update={"seen_peak_bytes": (1000 if run.side == "base" else 1256) * MIB})
        for run in low.sitting.runs
    )
    loaded = replace(low, sitting=low.sitting.model_copy(update={"runs": runs}))
    told = contradictions(loaded)["tiny/a", "ledger"]
    assert told == (
        "the candidate's process holds 256 MiB more than the base's, as the gate saw it, "
        "and by its ledger +0 MiB"
    )
    library = loaded.sitting.model_copy(update={"caveats": ()})
    assert {} == contradictions(replace(loaded, sitting=library))


def test_the_first_line_says_what_was_compared_by_whom_and_what_was_not_to_be_seen(tmp_path: Path) -> None:
    """With the smallest effect that these runs would have found."""
    line = opening(judge_records(session(tmp_path / "a", make_runs())))
    assert line.startswith("Compared: the environment as it is (5 runs) against the environment as it is")
    assert "measured by finetune-bench 1 (abc), on " in line
    assert "Would not have been seen (with 95 %): tokens_per_second: less than" in line
    assert "ledger_peak_bytes: less than 1.00 MiB, or 5 % where that is less" in line
    assert "host_peak_bytes: less than 16.00 MiB, or 5 % where that is more" in line
    itself = session(tmp_path / "b", make_runs(), by_itself=True)
    assert "; bench judged by itself, on " in opening(judge_records(itself))
