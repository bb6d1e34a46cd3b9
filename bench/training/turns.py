"""Two runs of a cell take turns: one loads, warms up and waits, then the other; then step by step.

Only one of them works at any time, on the same cores, so whatever slows the machine down for longer than a
step slows both.
"""

import os

from bench.records.derived_metrics import STEPS_IN_TURN
from bench.records.messages import GO_ON, Message, ReadingMade, Send, StepTurns
from bench.records.readings import Caveat
from bench.records.records import StepSample


class Turns:
    """This run's part: it has the machine from ``begin`` to ``hand_over``, and again when that returns.

    The order of steps is A | B B | A A | B B | …: half the steps of either follow one of the other's, which
    leaves its data in the caches, and a machine that grows slower slows both. Where the other run is over, it
    is not waited for.
    """

    def __init__(self, turns: StepTurns, *, threads: int) -> None:
        """Open the pipes, of which the gate holds both ends, and keep to as many cores as ``threads``.

        These are the last of the cores that the thread, and those it starts, may use, the same for both runs:
        cores differ in who else uses them, on a virtual machine above all.
        """
        self._own = os.open(turns.own_pipe, os.O_RDONLY | os.O_CLOEXEC)
        self._other = os.open(turns.other_pipe, os.O_WRONLY | os.O_CLOEXEC)
        self._first = turns.first
        self._alone = False
        self._measured_steps = 0
        self._cores = sorted(os.sched_getaffinity(0))[-threads:]
        os.sched_setaffinity(0, self._cores)

    def begin(self) -> None:
        """Sleep until it is this run's turn for the first time, both being ready."""
        if self._first:
            self._wait()
        else:
            self.hand_over()

    def hand_over(self) -> None:
        """Let the other run go on, and sleep until it hands back."""
        if not self._alone:
            os.write(self._other, GO_ON)
            self._wait()

    def _wait(self) -> None:
        if not self._alone:
            self._alone = os.read(self._own, 1) != GO_ON

    def between_steps(self, send: Send) -> Send:
        """Return a ``send`` that hands over after every other measured step, once the sample is sent."""

        def sending(message: Message) -> None:
            send(message)
            match message:
                case ReadingMade(reading=StepSample(stage="measured")):
                    self._measured_steps += 1
                    if self._measured_steps % 2 == self._first:
                        self.hand_over()

        return sending

    def caveat(self) -> Caveat:
        """Return what has to be known of such a run's speed."""
        cores = ", ".join(map(str, self._cores))
        message = (
            "Steps were taken in turn with another run's, on the same cores "
            f"({cores}), so they begin with colder caches than alone, and the times of whole phases include "
            "waiting."
        )
        return Caveat(code=STEPS_IN_TURN, message=message)
