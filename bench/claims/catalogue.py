"""The claims and how each is tested, as data: ``claims.toml`` read into frozen types. Judges nothing."""

import tomllib
from functools import cache
from importlib.resources import files
from math import inf
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.claims.cases import Where
from bench.scenario.types import Frozen

ValueOf = Literal[
    "parameters trained",
    "share of parameters trained",
    "times fewer parameters trained",
    "memory needed on a card",
    "bits of an adapter's parameter",
    "bits that products are computed in",
    "change of the largest logit",
]
PairOf = Literal[
    "less peak memory",
    "more peak memory",
    "times less peak memory",
    "times less memory once loaded",
    "bits of quantisation state saved",
    "speed",
]


class Bounds(Frozen):
    """Between which values a figure agrees with the claim, both included."""

    at_least: float | None = None
    at_most: float | None = None

    def judge(self, low: float, high: float) -> bool | None:
        """Tell whether all of an interval agrees; None where it reaches across a bound."""
        least = -inf if self.at_least is None else self.at_least
        most = inf if self.at_most is None else self.at_most
        return True if least <= low and high <= most else False if low > most or high < least else None


class _Part(Frozen):
    part: str = Field("", description="Which half of a claim, where it has several.")
    needs: str = Field("", description="What would have to be run to test it, where nothing here does.")

    @property
    def freed(self) -> tuple[str, ...]:
        """In which fields the cells of a pair may differ."""
        return ()


class ValueRule(Bounds, _Part):
    """A number of one cell lies within bounds."""

    kind: Literal["value"]
    quantity: ValueOf
    where: Where = Field(description="Dotted fields of a cell, and the value or values they may have.")


class Compared(_Part):
    """Cells set against others that are alike but for the ``free`` fields."""

    subject: Where
    reference: Where
    free: tuple[str, ...] = ()

    @property
    def freed(self) -> tuple[str, ...]:
        """The free fields, and the kind of method where both sides name different ones."""
        kinds = (self.subject.get("method.kind"), self.reference.get("method.kind"))
        return (*self.free, "method.kind") if None not in kinds and kinds[0] != kinds[1] else self.free


class PairRule(Bounds, Compared):
    """A number that sets one cell against another lies within bounds."""

    kind: Literal["pair"]
    quantity: PairOf


class LeverRule(_Part):
    """Every lower value of one field takes less peak memory, by ``at_least`` as a share, than the next."""

    kind: Literal["lever"]
    lever: str
    where: Where = Field(default_factory=dict)
    free: tuple[str, ...] = ()
    at_least: float = Field(gt=0)


class FitsRule(_Part):
    """A cell fits on each card of so much memory, as sold."""

    kind: Literal["fits"]
    where: Where
    card_gib: tuple[int, ...]


class RescueRule(Compared):
    """What does not surely fit on a card, fits there by the change of the ``free`` fields alone."""

    kind: Literal["rescue"]


class AccuracyRule(Compared):
    """Accuracy after training, on the same questions.

    ``no worse``: by no more than ``margin``; ``worse``: significantly below; ``different``: significantly
    above or below.
    """

    kind: Literal["accuracy"]
    asks: Literal["no worse", "worse", "different"]
    margin: float = Field(0.0, ge=0, lt=1, description="As a share of the questions.")


Rule = Annotated[
    ValueRule | PairRule | LeverRule | FitsRule | RescueRule | AccuracyRule,
    Field(discriminator="kind"),
]


class _ModelSize(Frozen):
    billions_from: float = Field(0.0, ge=0)
    billions_to: float = Field(1e6, gt=0)

    def is_about(self, parameters: int | None) -> bool:
        """Tell whether models with so many parameters are meant; of an unknown number they are not."""
        return parameters is not None and self.billions_from <= parameters / 1e9 <= self.billions_to


class WantedSetting(_ModelSize):
    """A setting that a claim is asked about as well; ``needs`` is what tests it, where nothing has yet."""

    name: str
    instrument: Literal["measured CPU", "measured GPU"]
    needs: str


class Claim(_ModelSize):
    """One statement, who makes it, which models it is about, and its tests.

    The tests are parts that ``all`` have to pass, or readings of which ``any`` may be meant.
    ``about`` is for readers; the bounds on ``billions`` of parameters are what decides which cells count.
    """

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    statement: str
    source: str
    about: str
    tests: tuple[Rule, ...] = Field(min_length=1)
    combine: Literal["all", "any"] = "all"
    settings_wanted: tuple[WantedSetting, ...] = Field(
        (), description="Where given, each model on each machine has a verdict of its own beside these."
    )
    reading: str = Field("", description="How the statement was made testable, and what to know of it.")


class _Catalogue(Frozen):
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _unique(self) -> "_Catalogue":
        ids = [claim.id for claim in self.claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: there twice; rename one")
        return self


@cache
def shipped_claims() -> tuple[Claim, ...]:
    """Return the claims that come with the package, in the order of their file."""
    text = files("bench.claims").joinpath("claims.toml").read_text(encoding="utf-8")
    return _Catalogue.model_validate(tomllib.loads(text)).claims
