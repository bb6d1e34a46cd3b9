"""Whether one value from a scenario file fits its field, and a sentence where it does not.

TOML has types, so none is converted: "8" is no integer and 1 is no boolean.
"""

import json
import math
import re
from datetime import date, datetime, time
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from bench.scenario.problems import shown

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WORDS = (
    ("Input should be ", "must be "),
    ("String should ", "must "),
    ("an object", "a table"),
    ("a valid array", "a list"),
    ("a valid integer", "an integer"),
    ("a valid boolean", "true or false"),
    ("a valid ", "a "),
    ("'", '"'),
)
"""Pydantic's words and ours."""


class Complaint(NamedTuple):
    """What is wrong with a value, and the values that would have been right where they can be listed."""

    message: str
    known: tuple[str, ...] = ()


def axis_of(field: FieldInfo, value: object) -> list[Any] | None:
    """Return the values of an axis, or None for a single value.

    A list is an axis, except where the field is a list by nature: there a list that holds lists is.
    """
    if not isinstance(value, list):
        return None
    by_nature = any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))
    return value if not by_nature or any(isinstance(one, list) for one in value) else None


def complaint_about(field: FieldInfo, value: object) -> Complaint | None:
    """Return what is wrong with a single value of ``field``; None if it fits."""
    odd = _oddity(value)
    if odd is not None:
        return Complaint(odd)
    try:
        _adapter(field).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return _told(error, value)
    return None


def _oddity(value: object) -> str | None:
    """Return what JSON or a terminal could not bear in a value, however deep."""
    if isinstance(value, dict | list):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return next((odd for odd in map(_oddity, inside) if odd is not None), None)
    if isinstance(value, date | datetime | time):
        return "dates and times have no meaning here; remove it"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "must be an integer of at most 64 bits"
    if isinstance(value, str) and _CONTROL.search(value):
        return "must not hold control characters"
    return None


@cache
def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _told(error: ValidationError, value: object) -> Complaint:
    """Put pydantic's errors into one sentence: a union is told as its alternatives."""
    details = error.errors(include_url=False)
    if details[0]["type"] == "string_pattern_mismatch":
        return Complaint("must be letters, digits, dots, dashes and underscores, the first a letter or digit")
    messages = []
    known: tuple[str, ...] = ()
    for detail in details:
        message = detail["msg"]
        for theirs, ours in _WORDS:
            message = message.replace(theirs, ours)
        messages.append(message)
        if detail["type"] == "literal_error":
            known = tuple(re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    told = " or ".join(dict.fromkeys(messages)).replace(" or must be ", " or ")
    return Complaint(f"{told}, not {shown(value)}", known)
