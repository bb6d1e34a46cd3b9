"""Verdicts for continuous integration: JUnit XML, GitHub's annotations, step summary and PR comment.

Everything that comes from a record or a scenario is escaped here. Opens no file.
"""

from collections.abc import Iterator
from typing import Literal
from xml.etree import ElementTree as ET

from bench.records.verdicts import MetricVerdict, Verdicts, outcome_verdict
from bench.report.gate import headline, message, render_markdown, subject
from bench.report.text import plain

COMMENT_MARK = "<!-- finetune-bench gate -->"
"""Stands first in a comment, so that a workflow finds the one to replace."""

MOST_COMMENT_BYTES = 64_000
"""GitHub takes 65,536 characters."""

MOST_SUMMARY_BYTES = 1024 * 1024
"""Of all that a step writes to its summary; GitHub shows nothing of a longer one."""

MOST_ANNOTATIONS = 10
"""GitHub shows ten errors of a step."""

Inconclusive = Literal["pass", "fail"] | None


def comment(verdicts: Verdicts, title: str) -> str:
    """Return the body of a pull request's comment, under 64 kB."""
    most = MOST_COMMENT_BYTES - len(COMMENT_MARK) - 1
    return f"{COMMENT_MARK}\n{render_markdown(verdicts, most_bytes=most, title=title)}"


def step_summary(verdicts: Verdicts, title: str, bytes_there: int) -> str:
    """Return what to append to a step's summary that holds so many bytes; nothing where it is full."""
    most = MOST_SUMMARY_BYTES - bytes_there - 2
    text = render_markdown(verdicts, most_bytes=most, title=title)
    return f"\n{text}" if len(text.encode()) < most else ""


def junit(verdicts: Verdicts, title: str, inconclusive: Inconclusive = None) -> str:
    """Return JUnit XML with a test case for each gated metric of each cell.

    A regression is a failure; what could not be decided or compared is skipped with its reason, or with
    ``inconclusive="fail"`` a failure. Where runs finished and nothing was compared, one case says so.
    """
    cases = verdicts.gated
    if verdicts.verdict == "inconclusive" and all(one.verdict == "pass" for one in cases):
        cases = (*cases, outcome_verdict("bench gate", "inconclusive", headline(verdicts)))
    failing = {"regression"} | ({"inconclusive", "not comparable"} if inconclusive == "fail" else set())
    failures = [one for one in cases if one.verdict in failing]
    skipped = [one for one in cases if one.verdict not in failing and one.verdict != "pass"]
    counts = {
        "name": plain(title),
        "tests": str(len(cases)),
        "failures": str(len(failures)),
        "skipped": str(0 if inconclusive == "pass" else len(skipped)),
        "errors": "0",
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", counts)
    for one in cases:
        case = ET.SubElement(suite, "testcase", classname=plain(one.cell), name=plain(subject(one)), time="0")
        if one.verdict in failing:
            ET.SubElement(case, "failure", message=plain(one.reason), type=one.verdict).text = message(one)
        elif one.verdict != "pass" and inconclusive != "pass":
            ET.SubElement(case, "skipped", message=message(one))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def annotations(verdicts: Verdicts) -> Iterator[str]:
    """Yield GitHub's workflow commands: an error for each regression, ten at most, the last one counting.

    Where nothing regressed but the verdict is not a pass, one warning.
    """
    worse = [one for one in verdicts.gated if one.verdict == "regression"]
    several = len(worse) > MOST_ANNOTATIONS
    for one in worse[: MOST_ANNOTATIONS - 1 if several else MOST_ANNOTATIONS]:
        yield _command("error", f"{subject(one)} of {one.cell}", message(one))
    if several:
        yield _command(
            "error",
            "bench gate",
            f"{len(worse) - MOST_ANNOTATIONS + 1} more regressions; {headline(verdicts)}",
        )
    if not worse and verdicts.verdict != "pass":
        first: MetricVerdict | None = next((one for one in verdicts.gated if one.verdict != "pass"), None)
        why = f"; {message(first)}" if first else ""
        yield _command("warning", "bench gate", f"{headline(verdicts)}{why}")


def _command(level: str, title: str, text: str) -> str:
    """Return a workflow command, escaped as GitHub's ``actions/toolkit`` does (``core/src/command.ts``)."""
    escaped = _escape(plain(text))
    return f"::{level} title={_escape(plain(title)).replace(':', '%3A').replace(',', '%2C')}::{escaped}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
