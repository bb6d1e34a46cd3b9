"""Runs the gates that report/gate.md shows, and keeps their records; on a machine that does nothing else.

    python tests/support/run_gate_examples.py [EXAMPLE …]

Each goes through the command line as anyone would: the base is what is committed, the candidate a copy that
``gate_candidates.py`` makes. The records replace those in results/gate/EXAMPLE, and ``bench report --update``
fills the page.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.records.sessions import SIDES, SITTING_FILE
from gate_candidates import HERE, make_candidate

BUILD = Path("build/gate")

EXACT = ("--exact-only", "--only", "*/full/*")

# Its records have no memory retained outside the model, no growth by step and no heap.
OLDER = "ea0e19c8b1bf"

# So that the two cores of a small machine are not both needed at once.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A scenario, the change in the candidate (None: there is none), and the exit codes that are right."""

    scenario: str
    change: str | None
    expected: tuple[int, ...]
    base: str = "HEAD"
    options: tuple[str, ...] = ()


EXAMPLES = {
    "no_change": Example(scenario="gate_speed", change=None, expected=(0,)),
    "no_change_by_runs": Example(scenario="gate_speed_by_runs", change=None, expected=(0, 3)),
    "memory": Example(scenario="gate_tiny", change="memory", expected=(1,)),
    "speed": Example(scenario="gate_speed", change="speed", expected=(1, 3)),
    "late": Example(scenario="gate_speed", change="late", expected=(1, 3)),
    "periodic": Example(scenario="gate_speed", change="periodic", expected=(1, 3)),
    "no_change_in_accuracy": Example(scenario="gate_learns", change=None, expected=(0,)),
    "learning_rate": Example(scenario="gate_learns", change="learning_rate", expected=(1,)),
    "own_ledger": Example(scenario="gate_tiny", change="own_ledger", expected=(3,), options=EXACT),
    "crash": Example(scenario="gate_tiny", change="crash", expected=(4,), options=EXACT),
    "output": Example(scenario="gate_tiny", change="output", expected=(0,), options=EXACT),
    "unloaded": Example(scenario="gate_tiny", change="unloaded", expected=(4,), options=EXACT),
    "older_base": Example(scenario="gate_tiny", change=None, expected=(0,), base=OLDER, options=EXACT),
}


def run_example(name: str) -> int:
    """Run one, keep its records, and return the exit code of the gate."""
    example = EXAMPLES[name]
    shutil.rmtree(HERE / BUILD / name, ignore_errors=True)
    candidate = "HEAD"
    if example.change is not None:
        make_candidate(example.change, HERE / BUILD / name)
        candidate = f"./{BUILD / name / example.change}"
    sittings = BUILD / name / "sittings"
    scenario = f"scenarios/{example.scenario}.toml"
    command = ["gate", scenario, "--base", example.base, "--candidate", candidate, "--results", str(sittings)]
    python = [sys.executable, "-m", "bench"]
    code = subprocess.run(
        [*python, *command, *example.options], cwd=HERE, env=os.environ | ONE_THREAD, check=False
    ).returncode
    (sitting,) = (HERE / sittings).iterdir()
    kept = HERE / "results" / "gate" / name
    shutil.rmtree(kept, ignore_errors=True)
    for side in SIDES:
        (kept / side).mkdir(parents=True)
        for record in (sitting / side).glob("*.json"):
            shutil.copy(record, kept / side)
    shutil.copy(sitting / SITTING_FILE, kept)
    return code


if __name__ == "__main__":
    wrong = {}
    for name in sys.argv[1:] or EXAMPLES:
        code = run_example(name)
        print(f"{name}: exit code {code}", flush=True)  # noqa: T201 - a script that says how it went
        if code not in EXAMPLES[name].expected:
            wrong[name] = code
    sys.exit(f"not as expected: {wrong}" if wrong else 0)
