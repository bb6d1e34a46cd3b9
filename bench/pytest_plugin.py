"""For pytest: each cell of a scenario a test, judged on stored results; a regression is a failed test.

    bench run FILE --repeats 3
    pytest --bench-scenario FILE --bench-baseline NAME

Runs nothing itself: pytest-xdist and other tests would disturb what is measured. Without the options it does
nothing and imports nothing of the suite.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bench.records.verdicts import Verdicts
    from bench.scenario.load import Scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "finetune-bench")
    group.addoption("--bench-scenario", metavar="FILE", help="Each cell of this scenario is a test.")
    group.addoption("--bench-results", metavar="DIR", help="Results to judge; by default results/<scenario>.")
    group.addoption(
        "--bench-baseline", metavar="NAME", help="Accepted baseline; without it a cell has to have run well."
    )
    group.addoption(
        "--bench-baselines", metavar="DIR", default="results/baselines", help="Where baselines lie."
    )
    group.addoption(
        "--bench-inconclusive",
        choices=("skip", "fail"),
        default="skip",
        help="What a cell becomes that cannot be judged.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the scenario file besides what was named."""
    scenario = config.getoption("--bench-scenario")
    if scenario is not None and str(scenario) not in config.args:
        config.args.append(str(scenario))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ScenarioFile | None":
    """Take the scenario file, and no other."""
    scenario = parent.config.getoption("--bench-scenario")
    if scenario is None or file_path != (parent.config.invocation_params.dir / scenario).resolve():
        return None
    collector: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    return collector


class ScenarioFile(pytest.File):
    """A scenario: what its cells came to is found out once, when the first of them is asked."""

    def collect(self) -> Iterator["CellItem"]:
        for cell in self.scenario.cells:
            yield CellItem.from_parent(self, name=cell.id)

    @cached_property
    def scenario(self) -> "Scenario":
        """The scenario; a mistake in it ends the collection with its lines."""
        from bench.errors import BenchError
        from bench.scenario.load import load_scenario

        try:
            return load_scenario(self.path)
        except BenchError as error:
            raise self.CollectError(str(error)) from None

    @cached_property
    def verdicts(self) -> "Verdicts":
        """The verdicts on all cells, which are one family. Raises ``BenchError``."""
        from bench.gate.stored import gate_results
        from bench.records.result_sets import BaselineFolder

        option = self.config.getoption
        chosen = BaselineFolder(root=Path(option("--bench-baselines")), name=option("--bench-baseline"))
        return gate_results(self.results, chosen, self.scenario.gate)

    @property
    def results(self) -> str:
        return str(self.config.getoption("--bench-results") or Path("results") / self.scenario.name)

    @cached_property
    def outcomes(self) -> dict[str, set[str]]:
        """How the runs of each cell ended. Raises ``BenchError``."""
        from bench.records.result_sets import load_result_set

        found: dict[str, set[str]] = {}
        for run in load_result_set(self.results).runs:
            found.setdefault(run.cell_id, set()).add(run.outcome)
        return found


class CellFailedError(Exception):
    """A cell did not pass; the message is what a user reads."""


class CellItem(pytest.Item):
    """One cell."""

    def runtest(self) -> None:
        """Fail where a gated metric became worse; skip, or fail on demand, where that cannot be told."""
        from bench.errors import BenchError

        assert isinstance(self.parent, ScenarioFile)  # noqa: S101 - made by it
        try:
            ended = self.parent.outcomes.get(self.name)
            if ended is None:
                raise CellFailedError(
                    f"{self.name} has no run; run bench run {self.parent.path}, then this again"
                )
            if self.config.getoption("--bench-baseline") is not None:
                self._judge(self.parent.verdicts)
            elif ended != {"ok"}:
                raise CellFailedError(f"a run of {self.name} ended as {' and '.join(sorted(ended - {'ok'}))}")
        except BenchError as error:
            raise CellFailedError(str(error)) from None

    def _judge(self, verdicts: "Verdicts") -> None:
        from bench.report.gate import message

        own = [one for one in verdicts.gated if one.cell == self.name]
        worse = [message(one) for one in own if one.verdict == "regression"]
        undecided = [message(one) for one in own if one.verdict not in {"regression", "pass"}]
        fail = self.config.getoption("--bench-inconclusive") == "fail" or self.name in verdicts.failed_cells
        if worse or (undecided and fail):
            raise CellFailedError("\n".join([*worse, *undecided]))
        if undecided:
            pytest.skip("; ".join(undecided))
        if not own:
            pytest.skip(f"{self.name} is new: the baseline has no run of it")

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: object = None,
    ) -> str:
        """Return the message alone: nobody needs a traceback of ours."""
        del style
        if isinstance(excinfo.value, CellFailedError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"cell {self.name}"
