"""Options that several commands share, and the choices they come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.scenario.gate import GateSpec

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)]
Cards = Annotated[
    list[str], typer.Option("--gpu", metavar="NAME", help="A card, such as rtx4090; may be repeated.")
]
Memories = Annotated[
    list[str], typer.Option("--memory", metavar="SIZE", help="Any card with so much memory, such as 24GiB.")
]
Allocator = Annotated[
    str,
    typer.Option(
        envvar=["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"], help="torch's allocator settings."
    ),
]
TorchVersion = Annotated[
    str | None, typer.Option(metavar="VERSION", help="torch that will run it.", show_default="as installed")
]
Baselines = Annotated[
    Path, typer.Option("--baselines", metavar="DIR", help="Where baselines lie.", show_default=True)
]
GateFile = Annotated[
    Path | None,
    typer.Option("--scenario", metavar="FILE", help="Scenario whose gate table sets the rules."),
]
Output = Annotated[
    list[Path], typer.Option("-o", "--output", metavar="FILE", help="FILE.json or FILE.md; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")]
Inconclusive = Annotated[
    Literal["pass", "fail"] | None,
    typer.Option(help="What an inconclusive verdict counts as.", show_default="exit code 3"),
]
Comment = Annotated[
    Path | None,
    typer.Option("--comment", metavar="FILE", help="Write a pull request's comment, under 64 kB."),
]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")]
ExactOnly = Annotated[
    bool, typer.Option("--exact-only", help="Gate only metrics that do not vary between runs.")
]


def gate_of(scenario: Path | None, *, exact_only: bool = False) -> "GateSpec":
    """Return the rules of a scenario's ``[gate]`` table, or the usual ones."""
    from bench.scenario.gate import GateSpec
    from bench.scenario.load import load_scenario
    from bench.stats.sequential import without_noise

    gate = GateSpec() if scenario is None else load_scenario(scenario).gate
    return without_noise(gate) if exact_only else gate


def require_one_format(*, json: bool, markdown: bool) -> None:
    """Raise ``UsageError`` where both are asked for."""
    if json and markdown:
        raise UsageError("--json and --markdown exclude each other; give one of them")


def require_endings(files: list[Path]) -> None:
    """Raise ``UsageError`` for a file that is neither JSON nor Markdown."""
    for file in files:
        if file.suffix not in {".json", ".md"}:
            raise UsageError(f"-o {file} ends in neither .json nor .md; name the file by what it shall hold")
