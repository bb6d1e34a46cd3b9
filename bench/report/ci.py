"""Verdicts for CI: a pull request's comment, a step's summary, annotations, JUnit XML."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal
from xml.etree import ElementTree as ET

from bench.records.verdicts import MetricVerdict, Verdicts, outcome_verdict
from bench.report.gate import headline, message, render_markdown, subject
from bench.report.text import plain

COMMENT_MARK = "<!-- finetune-bench gate -->"  # first in a comment: a workflow finds the one to replace
MOST_COMMENT_BYTES = 64_000  # GitHub takes 65,536 characters
MOST_SUMMARY_BYTES = 1024 * 1024  # of all that a step writes; GitHub shows nothing of a longer one
MOST_ANNOTATIONS = 10  # GitHub shows ten errors of a step
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

    def tag(one: MetricVerdict) -> str:
        if one.verdict == "regression" or (one.verdict != "pass" and inconclusive == "fail"):
            return "failure"
        return "" if one.verdict == "pass" or inconclusive == "pass" else "skipped"

    tags = Counter(map(tag, cases))
    counts = {"name": plain(title), "tests": str(len(cases)), "failures": str(tags["failure"])}
    counts |= {"skipped": str(tags["skipped"]), "errors": "0"}
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", counts)
    for one in cases:
        case = ET.SubElement(suite, "testcase", classname=plain(one.cell), name=plain(subject(one)), time="0")
        if tag(one) == "failure":
            ET.SubElement(case, "failure", message=plain(one.reason), type=one.verdict).text = message(one)
        elif tag(one):
            ET.SubElement(case, "skipped", message=message(one))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def annotations(verdicts: Verdicts) -> Iterator[str]:
    """Yield GitHub's workflow commands: an error for each regression, ten at most, the last one counting.

    Where nothing regressed but the verdict is not a pass, one warning.
    """
    worse = [one for one in verdicts.gated if one.verdict == "regression"]
    shown = worse if len(worse) <= MOST_ANNOTATIONS else worse[: MOST_ANNOTATIONS - 1]
    for one in shown:
        yield _command("error", f"{subject(one)} of {one.cell}", message(one))
    if beyond := len(worse) - len(shown):
        yield _command("error", "bench gate", f"{beyond} more regressions; {headline(verdicts)}")
    if not worse and verdicts.verdict != "pass":
        why = next((f"; {message(one)}" for one in verdicts.gated if one.verdict != "pass"), "")
        yield _command("warning", "bench gate", f"{headline(verdicts)}{why}")


def _command(level: str, title: str, text: str) -> str:
    """Return a workflow command, escaped as GitHub's ``actions/toolkit`` does (``core/src/command.ts``).

    Its line breaks need no escape: plain text has none.
    """
    title, text = (plain(each).replace("%", "%25") for each in (title, text))
    return f"::{level} title={title.replace(':', '%3A').replace(',', '%2C')}::{text}"
