"""``bench calibrate``: what runs of one environment differ by on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import ScenarioFile


def calibrate(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")] = None,
    sittings: Annotated[int, typer.Option(min=1, help="Times that both sides are started anew.")] = 2,
    repeats: Annotated[int, typer.Option(min=2, help="Runs of each side in a sitting.")] = 3,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="results/calibration/<scenario>")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let models from a hub run code of their own.")
    ] = False,
) -> None:
    """Run this environment against itself: how far runs spread here, and what a gate can find."""
    from bench.gate import calibrate as calibration
    from bench.gate.text import GateLines
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    options = calibration.CalibrateOptions(
        folder=results or Path("results") / "calibration" / loaded.name,
        sittings=sittings,
        repeats=repeats,
        gate=loaded.gate,
        trust_remote_code=trust_remote_code,
    )
    observer = GateLines(lambda line: typer.echo(line, err=True))
    made = calibration.calibrate(choose_cells(loaded.cells, only), options, observer)

    # Not before: it needs scipy, and nothing shall weigh on the machine while it is measured.
    from bench.gate.text import noise_lines
    from bench.stats.power import noise_rows

    for line in (*noise_lines(noise_rows(made, loaded.gate)), *(caveat.message for caveat in made.caveats)):
        typer.echo(line)
    typer.echo(f"Calibration: {options.folder}")
