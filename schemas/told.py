"""Models that scripts make: a mistake in one is an error of ours, in a line that a person can act on.

pydantic's own text has many lines and a link. The tables of a file are not made so: pydantic makes them itself, and
fedmq.config.mistakes tells what is wrong there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedmq.schemas.errors import InvalidValue, shown
from fedmq.schemas.nearest import near

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_EXPECTED = "Input should be "


class Told(ModelMetaclass):
    """The metaclass of such models. Making one raises InvalidValue, which lists all mistakes."""

    if not TYPE_CHECKING:  # a checker reads the fields of each model

        def __call__(cls, *args: Any, **given: Any) -> Any:  # noqa: N805 (ruff does not see that this is a metaclass)
            try:
                return super().__call__(*args, **given)
            except ValidationError as error:
                found = error.errors(include_url=False)
            told = "; ".join(mistake(item, list(cls.model_fields)) for item in found)
            raise InvalidValue(f"{cls.__name__}: {told}")


def mistake(found: ErrorDetails, names: list[str]) -> str:
    """Return what pydantic found wrong, in a line. `names` are the model's own fields."""
    place = ".".join(str(step) for step in found["loc"])
    said = found["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if found["type"] == "extra_forbidden":
        known = names if len(found["loc"]) == 1 else []
        return f"{place} is an unknown key" + (f", allowed: {', '.join(known)}{near(place, known)}" if known else "")
    if found["type"] == "missing":
        return f"{place} is missing"
    if not place:
        return said
    if said.startswith(_EXPECTED):
        return f"{place}: got {shown(found['input'])}, expected {said.removeprefix(_EXPECTED)}"
    return f"{place}: got {shown(found['input'])}. {said}"
