"""What commands share: their options, how answers are printed and written, and what is done around it all."""

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from bench.errors import UsageError
from bench.io import own_text, parse_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from bench.records.verdicts import Verdicts
    from bench.scenario.cell import Cell
    from bench.scenario.gate import GateSpec

BASELINES = Path("results/baselines")
Inconclusive = Literal["pass", "fail"]
_ANY_SIZE = 2**40
_HELP = parse_json(own_text("bench.commands", "options.json"))
"""By command and option, what typer is told of it; else by data class, and else under "shared"."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command for typer: arguments stand before its ``*``, options after it.

    A parameter of a data class stands for the fields of that class. A sequence may be given several times,
    and where options.json says so with commas; it comes as a tuple.
    """
    groups: dict[str, Any] = {}
    with_commas: set[str] = set()
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        inside, kind, told = [parameter], parameter.annotation, [function.__name__, "shared"]
        if is_dataclass(kind):
            groups[name] = kind
            inside = [*inspect.signature(groups[name]).parameters.values()]
            told.insert(1, groups[name].__name__)
        parameters += [_explained(told, one) for one in inside]
        with_commas |= {one.name for one in inside if _settings(told, one.name).get("commas")}

    @wraps(function)
    def call(*arguments: Any, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = split(value) if name in with_commas else tuple(value)
        for name, group in groups.items():
            own = values.keys() & inspect.signature(group).parameters
            values[name] = group(**{field: values.pop(field) for field in own})
        function(*arguments, **values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def split(given: Sequence[str]) -> tuple[str, ...]:
    """Return the values of an option that is repeated, has commas, or both; each once."""
    return tuple(dict.fromkeys(part.strip() for text in given for part in text.split(",")))


def _settings(told: Sequence[str], name: str) -> dict[str, Any]:
    return next(filter(None, (_HELP.get(where, {}).get(name) for where in told)), {})


def _explained(told: Sequence[str], parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as typer reads it. A flag that is off by itself has no opposite."""
    name, kind, default = parameter.name, parameter.annotation, parameter.default
    settings = {key: value for key, value in _settings(told, name).items() if key != "commas"}
    names = settings.pop("names", [f"--{name.replace('_', '-')}"] if default is False else [])
    if get_origin(kind) is Sequence:
        kind = GenericAlias(list, get_args(kind))
        default = default if default is parameter.empty else list(default)
    is_option = parameter.kind is parameter.KEYWORD_ONLY
    read = typer.Option(*names, **settings) if is_option else typer.Argument(**settings)
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[kind, read], default=default)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an answer is printed: for a terminal, unless asked otherwise."""

    json: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        if self.json and self.markdown:
            raise UsageError("--json and --markdown exclude each other; give one of them")

    def show(
        self,
        json: Callable[[], str],
        markdown: Callable[[], str],
        terminal: Callable[[], "RenderableType"],
        console: "Console | None" = None,
    ) -> None:
        if self.json or self.markdown:
            typer.echo(json() if self.json else markdown(), nl=False)
            return
        from rich.console import Console

        (console or Console()).print(terminal())


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a command's verdicts go."""

    output: Sequence[Path] = ()
    json: bool = False
    markdown: bool = False

    def check(self) -> Form:
        """Raise ``UsageError`` for what cannot be meant, before anything long is begun."""
        form = Form(json=self.json, markdown=self.markdown)
        for file in self.output:
            require_ending(file)
        return form

    def show(self, verdicts: "Verdicts", title: str) -> None:
        """Print verdicts and write every file asked for. Raises ``InfrastructureError`` if one cannot be."""
        from bench.io import write_text
        from bench.report.gate import render_markdown, render_terminal

        text = cache(lambda: verdicts.model_dump_json(indent=1) + "\n")
        page = cache(lambda: render_markdown(verdicts, most_bytes=_ANY_SIZE, title=title))
        for file in self.output:
            write_text(file, text() if file.suffix == ".json" else page())
        self.check().show(text, page, lambda: render_terminal(verdicts, title))


def conclude(verdicts: "Verdicts", outputs: Outputs, title: str, inconclusive: Inconclusive | None) -> None:
    outputs.show(verdicts, title)
    if code := verdicts.exit_code(inconclusive):
        raise typer.Exit(code)


def gate_of(scenario: Path | None, *, exact_only: bool = False) -> "GateSpec":
    """Return the rules of a scenario's ``[gate]`` table, or the usual ones."""
    from bench.scenario.gate import GateSpec
    from bench.scenario.load import load_scenario
    from bench.stats.sequential import without_noise

    gate = GateSpec() if scenario is None else load_scenario(scenario).gate
    return without_noise(gate) if exact_only else gate


def show_data(cells: "Sequence[Cell]", *, strict: bool) -> None:
    """Say beside the answer what each file of rows is read as.

    Raises ``UsageError`` for mistakes if ``strict``; else they are said, for nothing needs the data yet.
    """
    from bench.runner.schedule import examine_data, require_data

    lines, problems = (require_data(cells), []) if strict else examine_data(cells)
    for line in (*lines, *problems):
        typer.echo(line, err=True)


def require_results(paths: Sequence[Path]) -> None:
    """Raise ``UsageError`` for a file that holds no results, naming the commands that take it."""
    for path in paths:
        name = path.name.lower()
        if name.endswith(".toml"):
            raise UsageError(f"{path} is a scenario file; bench run, plan and cells take it; give results")
        if name.endswith((".html", ".htm", ".md", ".csv", ".parquet")):
            raise UsageError(f"{path} is a page or table made from results; give the results folder itself")


def require_ending(file: Path) -> None:
    if file.suffix not in {".json", ".md"}:
        raise UsageError(f"-o {file} ends in neither .json nor .md; name the file by what it shall hold")


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
