"""Options that several commands share, and what commands do around their work."""

import dataclasses
import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.scenario.gate import GateSpec

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)]
ResultPaths = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS", help="Results folders or record files.", show_default=False),
]
Only = Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let models from a hub run code of their own.")
]
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
BASELINES = Path("results/baselines")
GateFile = Annotated[
    Path | None,
    typer.Option("--scenario", metavar="FILE", help="Scenario whose gate table sets the rules."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")]


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


def require_results(paths: Sequence[Path]) -> None:
    """Raise ``UsageError`` for a file that holds no results, naming the commands that take it."""
    for path in paths:
        name = path.name.lower()
        if name.endswith(".toml"):
            raise UsageError(f"{path} is a scenario file; bench run, plan and cells take it; give results")
        if name.endswith((".html", ".htm", ".md", ".csv", ".parquet")):
            raise UsageError(f"{path} is a page or table made from results; give the results folder itself")


def require_ending(file: Path) -> None:
    """Raise ``UsageError`` for a file that is neither JSON nor Markdown."""
    if file.suffix not in {".json", ".md"}:
        raise UsageError(f"-o {file} ends in neither .json nor .md; name the file by what it shall hold")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take data classes of options: each of their fields is an option of the command line."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}

    @wraps(command)
    def call(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        command(**values)

    def expanded() -> Iterator[inspect.Parameter]:
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name not in groups:
                yield parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
                continue
            kind = groups[parameter.name]
            types = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                made = field.default_factory
                default = field.default if made is dataclasses.MISSING else made()
                yield inspect.Parameter(
                    field.name, parameter.KEYWORD_ONLY, default=default, annotation=types[field.name]
                )

    parameters = list(expanded())
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Collect no cycles within, or during a function that is decorated with it.

    Commands that read thousands of records, show a page and end use it: the collector would go through all
    records again and again, for a quarter of the command's time, and find nothing to free.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
