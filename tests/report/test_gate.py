"""Verdicts shown: Markdown, terminal, JUnit, annotations, comment, summary, with strangers' text in them."""

import io
from xml.etree import ElementTree as ET

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from bench.records.readings import Caveat
from bench.records.verdicts import ComparedSide, MetricVerdict, VerdictName, Verdicts
from bench.report.ci import COMMENT_MARK, annotations, comment, junit, step_summary
from bench.report.gate import headline, render_markdown, render_terminal

MIB = 1024**2
_JUDGED = TypeAdapter(MetricVerdict)
HOSTILE = "a|b <script>x</script> @all 100%: a,b \x1b[31m\n::error::boo ]]> [x](javascript:1)"


def make_judged(verdict: VerdictName = "pass", **changes: object) -> MetricVerdict:
    """Return a judgement on an exact peak."""
    fields = {
        "cell": "tiny/full",
        "metric": "ledger_peak_bytes",
        "unit": "bytes",
        "kind": "deterministic",
        "verdict": verdict,
        "gated": True,
        "reason": "+1,048,576 bytes, tolerance 1,048,576",
        "baseline": 600 * MIB,
        "candidate": 601 * MIB,
        "ratio": 601 / 600,
    }
    return _JUDGED.validate_python(fields | changes)


def make_verdicts(*judgements: MetricVerdict, **changes: object) -> Verdicts:
    """Return a document with these judgements, worst first."""
    side = ComparedSide(given="results/a", runs=3, environment={})
    fields = {
        "design": "stored baseline",
        "scenarios": ("tiny",),
        "verdict": judgements[0].verdict,
        "alpha": 0.01,
        "baseline": side,
        "candidate": side,
        "judgements": judgements,
    }
    return Verdicts.model_validate(fields | changes)


def test_the_document_is_read_back_as_it_was_written() -> None:
    """Its version stands in it."""
    verdicts = make_verdicts(make_judged("regression"))
    assert verdicts == Verdicts.model_validate_json(verdicts.model_dump_json())
    assert '"verdicts_version":1' in verdicts.model_dump_json()


def test_a_page_says_the_verdict_and_shows_each_change() -> None:
    """Values in their unit, the factor, and the sentence."""
    accuracy = make_judged(
        "inconclusive",
        metric="accuracy_after",
        task="held-out",
        unit="share",
        kind="paired",
        baseline=0.8,
        candidate=0.75,
        ratio=None,
        difference=-0.05,
        difference_low=-0.09,
        difference_high=-0.01,
    )
    page = render_markdown(
        make_verdicts(make_judged("regression"), accuracy, differences=("versions.peft: 1 before, 2 now",)),
        most_bytes=10_000,
        title="Gate",
    )
    assert "**regression: of 2 gated metrics 1 regression, 1 inconclusive**" in page
    lines = [line.split(" | ") for line in page.splitlines()]
    exact = next(line for line in lines if line[0] == "| tiny/full" and line[1] == "ledger_peak_bytes")
    assert ["REGRESSION", "+1,048,576 bytes, tolerance 1,048,576", "600.00 MiB", "601.00 MiB"] == exact[2:6]
    assert exact[6].endswith(" 1.002")
    paired = next(line for line in lines if line[0] == "| tiny/full" and line[1].startswith("accuracy"))
    assert ["80.0 %", "75.0 %", "\N{MINUS SIGN}5.0 points"] == paired[4:7]
    assert "versions.peft: 1 before, 2 now" in page


@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_a_comment_stays_under_its_limit_and_counts_what_it_leaves_out(rows: int) -> None:
    """The worst stand first; every judgement is either shown or counted."""
    judgements = [make_judged("regression", cell=f"tiny/{row}", reason="ü" * 100) for row in range(rows)]
    text = comment(make_verdicts(*judgements, make_judged("pass", cell="last")), "Gate")
    assert text.startswith(COMMENT_MARK)
    assert len(text.encode()) < 64_000
    shown = text.count("| REGRESSION |")
    if rows == 1000:
        assert 100 < shown < rows
        assert f"Not shown: {rows - shown} regression, 1 pass; the JSON document has all of them." in text
    else:
        assert (rows, False) == (shown, "Not shown" in text)


def test_a_summary_respects_what_is_there_already() -> None:
    """GitHub shows nothing of a summary above 1 MiB, so nothing is added to a full one."""
    rows = [make_judged("regression", cell=f"tiny/{row}", reason="x" * 1000) for row in range(1500)]
    verdicts = make_verdicts(*rows)
    assert 900_000 < len(step_summary(verdicts, "Gate", 0).encode()) < 1024 * 1024
    assert len(step_summary(verdicts, "Gate", 1_000_000).encode()) < 1024 * 1024 - 1_000_000
    assert "" == step_summary(verdicts, "Gate", 1024 * 1024 - 10)


def test_junit_has_a_case_for_each_gated_metric() -> None:
    """A regression fails, what is open is skipped or fails on demand, what is not gated is left out."""
    verdicts = make_verdicts(
        make_judged("regression", cell=HOSTILE, reason=HOSTILE),
        make_judged("inconclusive"),
        make_judged("pass"),
        make_judged("regression", gated=False),
    )
    root = ET.fromstring(junit(verdicts, HOSTILE).encode())  # noqa: S314 - made here
    assert ("3", "1", "1") == (root.get("tests"), root.get("failures"), root.get("skipped"))
    cases = root.findall(".//testcase")
    assert ["failure", "skipped", None] == [next((child.tag for child in case), None) for case in cases]
    assert "<script>x</script>" in str(cases[0].get("classname"))
    strict = ET.fromstring(junit(verdicts, "Gate", "fail").encode())  # noqa: S314 - the same
    assert ("2", "0") == (strict.get("failures"), strict.get("skipped"))
    lax = ET.fromstring(junit(verdicts, "Gate", "pass").encode())  # noqa: S314 - the same
    assert ("1", "0") == (lax.get("failures"), lax.get("skipped"))


def test_annotations_are_escaped_and_ten_at_most() -> None:
    """A record's text opens no command of its own; the tenth counts the rest."""
    (only,) = annotations(make_verdicts(make_judged("regression", cell=HOSTILE)))
    properties, _, text = only.removeprefix("::error title=").partition("::")
    assert ("\n" in only, ":" in properties, "," in properties) == (False, False, False)
    assert "100%25" in text
    several = [*annotations(make_verdicts(*[make_judged("regression") for _ in range(25)]))]
    assert 10 == len(several)
    assert "16 more regressions" in several[-1]
    assert 10 == len([*annotations(make_verdicts(*[make_judged("regression") for _ in range(10)]))])
    (warning,) = annotations(make_verdicts(make_judged("inconclusive")))
    assert warning.startswith("::warning title=")
    assert [] == [*annotations(make_verdicts(make_judged("pass")))]


def test_hostile_text_stays_text() -> None:
    """In Markdown no tag, mention, link or table cell comes of it, in the terminal no escape sequence."""
    verdicts = make_verdicts(
        make_judged("regression", cell=HOSTILE, reason=HOSTILE),
        differences=(HOSTILE,),
        caveats=(Caveat(code="x", message=HOSTILE),),
        problems=(HOSTILE,),
    )
    page = render_markdown(verdicts, most_bytes=100_000, title=HOSTILE)
    for bad in ("<script>", "@all", "[x](javascript", "\x1b"):
        assert bad not in page
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render_terminal(verdicts, HOSTILE))
    assert "\x1b" not in console.export_text()


def test_a_terminal_of_80_columns_tells_what_is_wrong_and_names_what_passes() -> None:
    """A regression has its figures and its reason on whole words; what passes is a list of names."""
    verdicts = make_verdicts(
        make_judged("regression", reason="+1,048,576 bytes, tolerance 1,048,576"),
        make_judged("pass", metric="saved_for_backward_bytes"),
        make_judged("pass", metric="step_flops"),
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(render_terminal(verdicts, "Session x"))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    (regression,) = (line for line in lines if line[:1] == ["REGRESSION"])
    assert ["ledger_peak_bytes", "→"] == [regression[1], regression[regression.index("→")]]
    assert ["pass", "saved_for_backward_bytes,", "step_flops"] in lines
    assert "1,048,576 bytes, tolerance 1,048,576" in " ".join(text.split())


def test_what_is_not_gated_has_its_values_where_it_is_undecided() -> None:
    """Two files of another tool's times hold nothing that is gated: the numbers are what was asked for."""
    times = {"metric": "step_time_ns", "unit": "ns", "gated": False, "reason": "0 sessions"}
    undecided = make_judged("inconclusive", **times, baseline=220.0, candidate=330.0, ratio=1.5)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(render_terminal(make_verdicts(undecided), "x"))
    text = " ".join(console.export_text().split())
    assert " (not gated) step_time_ns 220 ns → 330 ns (" in text
    assert "0 sessions" not in text


def test_facts_longer_than_the_limit_leave_the_verdict() -> None:
    """A stranger's thousand caveats do not push it out."""
    caveats = tuple(Caveat(code="x", message=f"{number} " * 50) for number in range(2000))
    text = comment(make_verdicts(make_judged("regression"), caveats=caveats), "Gate")
    assert len(text.encode()) < 64_000
    assert "regression: of 1 gated metric 1 regression" in text


def test_a_pass_says_what_it_leaves_out() -> None:
    """What is not gated and differs, and what is not gated and could not be decided, is counted beside it."""
    passed = make_judged("pass")
    verdicts = make_verdicts(
        passed,
        make_judged("regression", gated=False),
        make_judged("inconclusive", gated=False, kind="statistical", metric="step_time_ns"),
    ).model_copy(update={"verdict": "pass"})
    assert headline(verdicts) == (
        "no regression found in what was gated: 1 gated metric passes; not gated: 1 differs, 1 inconclusive"
    )


def test_runs_that_merely_finished_are_no_pass_for_continuous_integration() -> None:
    """The headline says that nothing was compared, and JUnit has a case that is skipped for it."""
    finished = make_judged("pass", metric="outcome", kind="outcome", unit="", ratio=None)
    verdicts = make_verdicts(finished).model_copy(update={"verdict": "inconclusive"})
    assert headline(verdicts).startswith("inconclusive: every run finished, but no gated metric")
    assert "1" == ET.fromstring(junit(verdicts, "Gate")).get("skipped")  # noqa: S314 - made here
