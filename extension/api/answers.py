"""What is answered: JSON that every reader reads, and errors in one form."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from dreambooth_core.errors import DreamBoothError, UserError


class Refused(UserError):
    """A request that is turned away at the door."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        where: str | None = None,
        do: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(what, where=where, do=do)
        self.status = status
        self.headers = headers


class Json(JSONResponse):
    """No ``NaN``, which is no JSON, and ASCII alone: names of files may hold any bytes."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


def told(error: DreamBoothError) -> Json:
    """An error's answer: 400 for the caller's, 500 for ours, the door's own for its."""
    status = 400 if isinstance(error, UserError) else 500
    headers = None
    if isinstance(error, Refused):
        status, headers = error.status, error.headers
    return Json({"error": error.as_dict()}, status_code=status, headers=headers)


def misshapen(error: RequestValidationError) -> Refused:
    """What fastapi finds wrong with a query or a body, in our form."""
    first: Any = next(iter(error.errors()), {})
    place = ".".join(str(part)[:60] for part in first.get("loc", ())[:6])
    return Refused(422, str(first.get("msg", "the request has another shape"))[:200], where=place)
