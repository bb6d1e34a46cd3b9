"""Runs the gates that report/gate.md and report/gpu_memory_gate.md show, and keeps what they wrote.

    python tests/support/run_gate_examples.py [EXAMPLE …]

Each goes through the command line as anyone would. Of report/gate.md the base is what is committed, the
candidate a copy that ``gate_candidates.py`` makes, and the machine should do nothing else; of
report/gpu_memory_gate.md both are released versions, which pip fetches, and what is kept are plans. They
replace what is in results/gate/EXAMPLE, and ``bench report --update`` fills the pages.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.records.sessions import PLAN_FILES, SIDES, SITTING_FILE
from gate_candidates import HERE, make_candidate

BUILD = Path("build/gate")

EXACT = ("--exact-only", "--only", "*/full/*")

# Its records have no memory retained outside the model, no growth by step and no heap.
OLDER = "ea0e19c8b1bf"

# So that the two cores of a small machine are not both needed at once.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A scenario, the change in the candidate (None: there is none), and the exit codes that are right.

    ``base`` and ``candidate`` are what is given where no change is made.
    """

    scenario: str
    change: str | None = None
    expected: tuple[int, ...]
    base: str = "HEAD"
    options: tuple[str, ...] = ()
    candidate: str = "HEAD"


def _versions(base: str, candidate: str, *, expected: int, scenario: str = "gate_gpu_memory") -> Example:
    return Example(
        scenario=scenario, base=base, candidate=candidate, expected=(expected,), options=("--predict",)
    )


EXAMPLES = {
    "no_change": Example(scenario="gate_speed", change=None, expected=(0,)),
    "no_change_by_runs": Example(scenario="gate_speed_by_runs", change=None, expected=(0, 3)),
    "memory": Example(scenario="gate_tiny", change="memory", expected=(1,)),
    "retained": Example(scenario="gate_tiny", change="retained", expected=(1,), options=EXACT),
    "leak": Example(scenario="gate_tiny", change="leak", expected=(1,), options=EXACT),
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
    "transformers_5_18": _versions("transformers==5.18.0", "transformers==5.20.2", expected=0),
    "peft_0_20": _versions("peft==0.20.0", "peft==0.21.2", expected=1),
    "transformers_5_15": _versions("transformers==5.15.1", "transformers==5.16.1", expected=0),
    "peft_0_18": _versions("peft==0.18.1", "peft==0.20.0", expected=1),
    "trl_1_6": _versions("trl==1.6.0", "trl==1.7.0", expected=1, scenario="gate_loops_memory"),
}


def run_example(name: str) -> int:
    """Run one, keep its records, and return the exit code of the gate."""
    example = EXAMPLES[name]
    shutil.rmtree(HERE / BUILD / name, ignore_errors=True)
    candidate = example.candidate
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
    kept.mkdir(parents=True)
    predicted = "--predict" in example.options
    for side in () if predicted else SIDES:
        (kept / side).mkdir()
        for record in (sitting / side).glob("*.json"):
            shutil.copy(record, kept / side)
    for file in (SITTING_FILE, *(PLAN_FILES.values() if predicted else ())):
        shutil.copy(sitting / file, kept)
    return code


if __name__ == "__main__":
    wrong = {}
    for name in sys.argv[1:] or EXAMPLES:
        code = run_example(name)
        print(f"{name}: exit code {code}", flush=True)  # noqa: T201 - a script that says how it went
        if code not in EXAMPLES[name].expected:
            wrong[name] = code
    sys.exit(f"not as expected: {wrong}" if wrong else 0)
