"""bench gate as a user types it: exit codes, what is written, and mistakes without a traceback."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import cli
from bench.gate import session
from bench.records.verdicts import Verdicts
from bench.stats import simulation
from bench.stats.simulation import CheckRow, read_self_check
from gate_projects import make_repository
from sittings_factory import LOUD, MIB, make_runs, write_sitting

SCENARIO = """
device = "cpu"

[models.toy]
random = "tiny-llama-test"

[methods.oom]
kind = "lora"
rank = 8

[methods.ok]
kind = "lora"
rank = 8

[data]
source = "synthetic"

[training]
sequence_length = 32
micro_batch = 2

[gate]
repeats = 5
max_repeats = 5
"""
COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a repository with a scenario and two revisions."""
    monkeypatch.chdir(make_repository(tmp_path / "project", ["1.0", "2.0"]))
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    Path("toy.toml").write_text(SCENARIO)


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    code = leaving.value.code
    return code if isinstance(code, int) else 0


def test_two_references_are_run_in_turn_judged_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Revisions that are alike pass, also where both run out of memory; judged again, they do so again."""
    plain = session.gate_references

    def with_replay(cells: Any, references: Any, options: Any, tell: Any, **more: Any) -> Any:
        return plain(cells, references, replace(options, command=COMMAND), tell, **more)

    monkeypatch.setattr(session, "gate_references", with_replay)
    sides = ("--base", "v1.0", "--candidate", "v2.0", "--results", "sittings")
    assert 0 == bench(monkeypatch, "gate", "toy.toml", *sides, "--budget", "5m", "-o", "v.json")
    verdicts = Verdicts.model_validate_json(Path("v.json").read_bytes())
    assert ("pass", "v1.0", "v2.0", 6) == (
        verdicts.verdict,
        verdicts.baseline.given,
        verdicts.candidate.given,
        verdicts.candidate.runs,
    )
    outcomes = {one.cell.split("/")[1]: one.reason for one in verdicts.gated if one.metric == "outcome"}
    assert {
        "oom-r8": "both sides run out of memory",
        "ok-r8": "every run finished on both sides",
    } == outcomes
    said = capsys.readouterr()
    assert "base: revision v1.0 of this repository" in said.err
    assert "tokens_per_second" in said.out
    (sitting,) = Path("sittings").iterdir()
    assert verdicts == Verdicts.model_validate_json((sitting / "verdicts.json").read_bytes())
    assert 0 == bench(monkeypatch, "gate", str(sitting), "-o", "again.json")
    assert json.loads(Path("v.json").read_text()) == json.loads(Path("again.json").read_text())


@pytest.mark.parametrize(
    ("candidate", "options", "code"),
    [
        ({"ledger_bytes": 601 * MIB}, (), 1),
        ({"speeds": LOUD}, (), 3),
        ({"speeds": LOUD}, ("--inconclusive", "pass"), 0),
        ({"speeds": LOUD}, ("--inconclusive", "fail"), 1),
        ({"outcome": "crashed"}, ("--inconclusive", "pass"), 4),
        ({"outcome": "oom"}, (), 1),
    ],
)
def test_the_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, candidate: dict[str, Any], options: tuple[str, ...], code: int
) -> None:
    """0 pass, 1 regression, 3 inconclusive, 4 where a run failed."""
    folder = write_sitting(Path("sitting"), make_runs(), make_runs(**candidate))
    assert code == bench(monkeypatch, "gate", str(folder), *options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a scenario and --base REF"),
        (("toy.toml",), "say what toy.toml is to be held against"),
        (("none.toml", "--base", "v1.0"), "none.toml"),
        (("toy.toml", "--base", "v3.0"), "v3.0 is neither a path nor a revision"),
        (("toy.toml", "--base", "v1.0", "--only", "x*"), "--only x* matches no cell"),
        (("toy.toml", "--base", "v1.0", "--budget", "3 days"), "invalid duration '3 days' for --budget"),
        (("toy.toml", "--base", "v1.0", "--budget", "0s"), "invalid duration '0s' for --budget"),
        (("toy.toml", "--base", "v1.0", "--repeats", "1"), "--repeats 1 is out of range"),
        (("--base", "v1.0", "--command", 'python "x'), "is no command (No closing quotation)"),
        (("--base", "v1.0", "--command", "bash x.sh"), "bash is none; write python train.py"),
        (("--base", "v1.0", "--command", "python x.py", "--only", "*"), "no scenario to run, --only"),
        (("--base", "v1.0", "--command", "python x.py", "--baseline", "b"), "--allow-code or --baseline"),
        (
            ("toy.toml", "--base", "v1.0", "--calibration", "none"),
            "none cannot be read (No such file or directory); make one",
        ),
        (("toy.toml", "--base", "v1.0", "--resume"), "there is no session in"),
        (("toy.toml", "--base", "v1.0", "-o", "v.txt"), "v.txt"),
        (("--self-check", "-o", "check.md"), "must end in .json"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """Exit code 2, and nothing was run."""
    assert 2 == bench(monkeypatch, "gate", *arguments)
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not list(Path("results").glob("*"))


def test_the_self_check_prints_its_rates_and_fails_where_a_promise_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And can be read again."""
    assert 0 == bench(monkeypatch, "gate", "--self-check", "--replications", "8", "-o", "check.json")
    check = read_self_check(Path("check.json"))
    assert (8, True) == (check.replications, check.holds)
    assert check.rows[0].situation in capsys.readouterr().out
    broken = CheckRow(
        situation="all is lost",
        event="regression",
        trials=100,
        rate=0.5,
        low=0.4,
        high=0.6,
        side="at most",
        bound=0.01,
    )
    monkeypatch.setattr(simulation, "self_check", lambda _replications: iter([broken]))
    assert 4 == bench(monkeypatch, "gate", "--self-check")
    assert "NO" in capsys.readouterr().out
