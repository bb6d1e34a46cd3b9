"""The release in which a cell first changed: halving, releases that cannot be had, what may be asked."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UsageError
from bench.gate.predicted import FirstChange, State, bisect_predictions, first_changes
from bench.gate.protocol import PlanAssignment
from bench.gate.references import released
from bench.gate.session import SessionOptions
from bench.io import write_text
from bench.records.predictions import Plan, PlannedCell, plan_json
from bench.records.sessions import PLAN_FILES
from bench.records.verdicts import Verdicts
from gate_projects import make_wheel
from records_factory import make_prediction
from replay_worker import make_cell

RELEASES = [f"1.{number}" for number in range(12)]
MIB = 1024**2


def _since(**changes: int) -> tuple[list[str], Callable[[str], Mapping[str, State]]]:
    """Return what answers for releases, each cell changing in that minor one, and what it was asked."""
    asked: list[str] = []

    def states(release: str) -> Mapping[str, State]:
        asked.append(release)
        minor = int(release.partition(".")[2])
        return {cell: "changed" if minor >= since else "alike" for cell, since in changes.items()}

    return asked, states


def test_every_cell_has_a_release_of_its_own() -> None:
    """A cell that the last release leaves alone has none; halving asks for few of many releases."""
    asked, states = _since(first=1, middle=6, last=11, never=99)
    assert [
        FirstChange(cell="first", alike="1.0", changed="1.1"),
        FirstChange(cell="middle", alike="1.5", changed="1.6"),
        FirstChange(cell="last", alike="1.10", changed="1.11"),
    ] == sorted(first_changes(RELEASES, states), key=lambda one: int(one.changed.partition(".")[2]))
    asked, states = _since(one=7)
    assert ["1.7"] == [one.changed for one in first_changes(RELEASES, states)]
    assert len(asked) <= 5  # the last, and four halves of eleven


def test_a_release_that_cannot_be_predicted_is_left_out() -> None:
    """The change is then known to be between those around it, and so said."""
    _, states = _since(one=6)

    def without(release: str) -> Mapping[str, State]:
        return {} if release == "1.6" else states(release)

    assert [FirstChange(cell="one", alike="1.5", changed="1.7")] == [*first_changes(RELEASES, without)]


def test_two_neighbours_need_no_search() -> None:
    """There is nothing in between."""
    _, states = _since(one=1)
    assert [FirstChange(cell="one", alike="1.0", changed="1.1")] == [*first_changes(["1.0", "1.1"], states)]


def test_releases_are_those_that_pip_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, by their numbers and not their letters."""
    for version in ("1.10", "1.9", "2.0rc1"):
        make_wheel(tmp_path, "gated-package", version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert ("1.9", "1.10") == released("gated-package")
    with pytest.raises(InfrastructureError, match="pip cannot index no-such-package"):
        released("no-such-package")


@pytest.mark.parametrize(
    ("base", "candidate"),
    [
        ("msgspec==0.18,packaging==24.0", "msgspec==0.19"),
        ("msgspec==0.18", "packaging==24.0"),
        ("msgspec==0.19", "msgspec==0.18"),
        ("HEAD", None),
        ("no-such-package==1.0", None),
    ],
)
def test_only_two_releases_of_one_library_have_others_between(base: str, candidate: str | None) -> None:
    """Anything else is refused before a release is predicted."""
    asked = PlanAssignment(scenario="s", title="t")
    with pytest.raises(UsageError, match="two releases of one library"):
        bisect_predictions(asked, (base, candidate), SessionOptions(folder=Path("nowhere")))


def _plan(mebibytes: int) -> str:
    answer = make_prediction(mebibytes * MIB).model_copy(update={"requested_peak_bytes": mebibytes * MIB})
    planned = PlannedCell(cell=make_cell("ok", device="cuda", model=_RANDOM), answer=answer)
    return plan_json(Plan(scenario="s", title="t", cards=(), cells=(planned,)))


_RANDOM = {"name": "toy", "random": "tiny-llama-test"}


def test_a_release_is_predicted_once_and_the_change_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that pip cannot have is left out; the next time nothing is predicted at all."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.gate.predicted.released", lambda _package: tuple(RELEASES))
    predicted: list[str] = []

    def gate(_asked: object, references: tuple[str, str], *_: object) -> tuple[Path, Verdicts | None]:
        release = references[1].partition("==")[2]
        predicted.append(release)
        if release == "1.4":
            raise InfrastructureError("pip cannot install it")
        folder = tmp_path / f"session-{len(predicted)}"
        folder.mkdir()
        for side, minor in (("base", 0), ("candidate", int(release.partition(".")[2]))):
            write_text(folder / PLAN_FILES[side], _plan(100 if minor < 5 else 164))  # type: ignore[index]  # a side
        return folder, None

    monkeypatch.setattr("bench.gate.predicted.gate_predictions", gate)
    cell = make_cell("ok", device="cuda", model=_RANDOM)
    asked = PlanAssignment(scenario="s", title="t", cells_json=(cell.model_dump_json(),))
    options = SessionOptions(folder=tmp_path / "results")
    ends = "gated-package==1.0", "gated-package==1.8"
    said: list[str] = []
    _, verdicts = bisect_predictions(asked, ends, options, said.append)
    assert "regression" == verdicts.verdict
    (change,) = [one.message for one in verdicts.caveats if one.code == "first-change"]
    start = "replay/ok first changed in gated-package 1.5, and is in 1.3 still as in 1.0: "
    assert change.startswith(start)
    assert "+64.00 MiB" in change
    assert "gated-package 1.4 is left out: pip cannot install it" in said
    assert len(predicted) == len(set(predicted))
    predicted.clear()
    bisect_predictions(asked, ends, options)
    assert ["1.4"] == predicted  # of it nothing could be kept
