"""What requests carry: typed, without conversions. Written for pydantic 1.10 and 2 alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Union  # noqa: UP035 (pydantic 1 reads these)

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, create_model

from ..service.types import ToolOption

VALUES = (
    "Options by dotted keys, as /schema lists them, for example "
    '{"concepts[0].images": "/data/dog", "concepts[0].instance_prompt": "a photo of sks dog"}. '
    "What is left out keeps the presets' value, else the default."
)


class Body(BaseModel, extra="forbid"):
    """An object with no other fields than these."""


class Nothing(Body):
    """An empty object."""


class Settings(Body):
    """A configuration."""

    values: Dict[str, Any] = Field({}, description=VALUES)  # noqa: UP006
    presets: List[StrictStr] = Field(  # noqa: UP006
        [], description="Names of presets below the values, such as object-lora-sd1."
    )


class Start(Settings):
    """A run to start."""

    name: StrictStr = Field("run", description="Name of the run; a number is added if it is taken.")


class Command(Body):
    """A request to a run."""

    verb: StrictStr = Field(
        ...,
        description="sample, save, stop (it saves), stop_after_epoch, stop_without_saving or kill.",
    )


class Step(Body):
    """A saved step."""

    step: Optional[StrictInt] = Field(  # noqa: UP045
        None, description="The step; the last if absent."
    )


class Evaluation(Body):
    """How a run is judged."""

    kind: StrictStr = Field("thing", description="Which prompts: thing, living or style.")
    saves: StrictBool = Field(False, description="Judge every saved step, not the last alone.")
    download: StrictBool = Field(
        False, description="Let encoders be fetched that are not here (CLIP 605 MB, DINO 88 MB)."
    )


class Preset(Body):
    """A preset of the user's."""

    values: Dict[str, Any] = Field(..., description=VALUES)  # noqa: UP006


class Name(Body):
    """Something by its name."""

    name: StrictStr


class File(Body):
    """A file by its path."""

    file: StrictStr = Field(..., description="A path in a folder that may be used.")


class Caption(Body):
    """An image's caption."""

    picture: StrictStr = Field(..., description="The image's path.")
    text: StrictStr = Field(..., description="Empty removes the caption file.")


class Captions(Body):
    """Captions by a model."""

    folder: StrictStr = Field(..., description="Images.")
    model: StrictStr = Field("blip", description="A caption model's short name.")
    trigger: StrictStr = Field("", description="What the subject is called; comes first.")
    prefix: StrictStr = Field("", description="Comes before everything.")
    suffix: StrictStr = Field("", description="Comes at the end.")
    never: List[StrictStr] = Field([], description="Words that are taken out.")  # noqa: UP006
    overwrite: StrictBool = Field(False, description="Replace captions that are there.")
    download: StrictBool = Field(False, description="Let a model be fetched that is not here.")


class Crop(Body):
    """An image's crop."""

    picture: StrictStr = Field(..., description="The image's path.")
    sides: Optional[List[Union[StrictFloat, StrictInt]]] = Field(  # noqa: UP006, UP007, UP045
        ...,
        description="Left, top, right and bottom, as shares of its width and height (0 to 1); "
        "null removes the crop.",
    )


class Mark(Body):
    """A mark on an image that a run has made."""

    image: StrictStr = Field(..., description="The image's name, as /runs/{run}/marks has it.")
    mark: StrictStr = Field(..., description="good, bad, or empty to take it back.")


class Weighted(Body):
    """An adapter, and how strongly it counts."""

    file: StrictStr = Field(..., description="A name in the Lora folder, or a path.")
    weight: Union[StrictFloat, StrictInt] = 1.0  # noqa: UP007


KINDS: dict[str, Any] = {
    "str": StrictStr,
    "choice": StrictStr,
    "file": StrictStr,
    "output": StrictStr,
    "int": StrictInt,
    "float": Union[StrictFloat, StrictInt],  # noqa: UP007
    "bool": StrictBool,
    "list": List[StrictStr],  # noqa: UP006
    "numbers": List[Union[StrictFloat, StrictInt]],  # noqa: UP006, UP007
    "weighted": List[Weighted],  # noqa: UP006
}


def tool(name: str, options: Sequence[ToolOption]) -> type[BaseModel]:
    """The body of a tool's route: ``{"values": {…}}``, out of the command's own options."""
    fields: dict[str, Any] = {}
    for option in options:
        words = option.help + (f" One of {', '.join(option.choices)}." if option.choices else "")
        kind = KINDS[option.type]
        if option.required:
            fields[option.name] = (kind, Field(..., description=words))
        else:
            default = option.default
            fields[option.name] = (Optional[kind], Field(default, description=words))  # noqa: UP045
    title = name.capitalize()
    values = create_model(f"{title}Values", __base__=Body, **fields)
    made: type[BaseModel] = create_model(f"{title}Tool", __base__=Body, values=(values, Field(...)))
    return made


def given(body: Any) -> dict[str, Any]:
    """A tool's values: those that the request named."""
    found = body.dict(exclude_unset=True) if not hasattr(body, "model_dump") else None
    values: dict[str, Any] = (found or body.model_dump(exclude_unset=True))["values"]
    return values
