"""The real command line in a process of its own, with replay workers in the place of training.

``python replay_bench.py run FILE …`` is ``bench run FILE …``, but cells do what their method is named after.
"""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

FULL = os.environ.get("FAULTS") == "full"
"""Whether tests that take long by nature run in full, as before a release, or a small share of them."""

MARK = "FINETUNE_BENCH_TEST"
PYTHON = sys.executable


def scenario(*behaviours: str, seeds: int = 1, limits: str = "timeout_s = 60") -> str:
    """Return a scenario whose cells behave so, each with so many seeds, one after the other."""
    methods = "\n".join(f'[methods.{name}]\nkind = "lora"' for name in behaviours)
    return (
        f'[models.tiny]\nrandom = "tiny-llama-test"\n{methods}\n[data]\nsource = "synthetic"\n'
        f"[training]\nseed = {list(range(seeds))}\n[limits]\n{limits}\n"
    )


class ReplayBench(subprocess.Popen[str]):
    """A running command; every process it starts carries its mark, wherever it goes."""

    def __init__(self, folder: Path, *arguments: str, prelude: str = "", **options: Any) -> None:
        """Start it in ``folder``; ``prelude`` is Python that is run first in its process."""
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        environment = os.environ | {
            name: value,
            "PYTHONUNBUFFERED": "1",
            "FINETUNE_BENCH_CACHE": str(
                folder.with_suffix(".cache")
            ),  # no answer of an earlier test is read back
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[2]))),
        }
        code = f"{prelude}\nfrom replay_bench import main\nmain()"
        super().__init__(
            [PYTHON, "-c", code, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever it is doing."""
        self.kill()
        super().__exit__(kind, error, trace)

    def wait_for(self, text: str) -> None:
        """Return when a line with this text has been printed."""
        assert self.stdout is not None
        for line in self.stdout:
            if text in line:
                return
        raise AssertionError(f"it never said {text!r}, but {self.stderr.read() if self.stderr else ''}")

    def wait_until_ended(self) -> None:
        """Wait for its end; what it says fits into the pipes."""
        self.wait(60)

    def finish(self, timeout_s: float = 60) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it said on stderr."""
        _, said = self.communicate(timeout=timeout_s)
        return self.returncode, said

    def processes(self) -> list[int]:
        """Return the processes that carry the mark, this one and the workers' server among them."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def leaves_no_process(self) -> bool:
        """Tell whether all of them are gone within some seconds."""
        deadline_s = time.monotonic() + 10
        while self.processes():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True


def main() -> None:
    """Run the command line with a launcher of replay workers."""
    from bench import cli
    from bench.runner import sweep
    from bench.workers.launch import Launcher
    from replay_worker import replay

    preload = ["bench.workers.child", *filter(None, [os.environ.get("REPLAY_PRELOAD")])]
    # The one way in: the command makes its own, which would import torch.
    sweep.__dict__["Launcher"] = lambda **_: Launcher(work=replay, preload=preload)
    cli.main()
