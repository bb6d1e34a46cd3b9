"""What a calibration says: how far runs of each cell spread, and what a gate can therefore find."""

from dataclasses import dataclass

from bench.records.calibrations import Calibration
from bench.scenario.gate import GateSpec
from bench.stats.calibrated import noise_of
from bench.stats.detectable import detectable_effect, repeats_needed
from bench.stats.moderated import Noise
from bench.stats.policy import MetricPolicy, policies, rule_of


@dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """One gated metric of one cell. Shares are of the metric's value, 0.05 being 5 %.

    ``spread_share`` is the standard deviation between runs; ``detectable_shares`` are the smallest changes
    for the worse that are found with a probability of 95 % after each of the ``looks`` (repeats), and
    ``repeats_needed`` the repeats that find the metric's tolerance so; None if a hundred do not.
    """

    cell: str
    metric: str
    spread_share: float
    degrees_of_freedom: int
    looks: tuple[int, ...]
    detectable_shares: tuple[float, ...]
    tolerance_share: float
    repeats_needed: int | None


def noise_rows(calibration: Calibration, gate: GateSpec) -> tuple[NoiseRow, ...]:
    """Return a row for each calibrated cell and gated metric that varies between runs."""
    varying = [
        policy for policy in policies(gate).values() if policy.gated and policy.metric.kind == "statistical"
    ]
    pairs = [(cell, policy) for cell in calibration.cells for policy in varying]
    known = [
        (cell.cell, policy, noise)
        for cell, policy in pairs
        if (noise := noise_of(calibration, cell.digest, policy.metric.name)).degrees_of_freedom > 0
    ]
    return tuple(_row(cell, policy, noise, gate, tests=len(known)) for cell, policy, noise in known)


def _row(cell: str, policy: MetricPolicy, noise: Noise, gate: GateSpec, *, tests: int) -> NoiseRow:
    rule = rule_of(gate)
    return NoiseRow(
        cell=cell,
        metric=policy.metric.name,
        spread_share=noise.log_variance**0.5,
        degrees_of_freedom=noise.degrees_of_freedom,
        looks=rule.looks,
        detectable_shares=tuple(detectable_effect(noise, look, rule, tests=tests) for look in rule.looks),
        tolerance_share=policy.tolerance,
        repeats_needed=repeats_needed(noise, policy.tolerance, rule, tests=tests),
    )
