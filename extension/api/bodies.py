"""What requests carry. Written for pydantic 1.10 and 2 alike."""

from __future__ import annotations

from typing import Any, Dict, List, Optional  # noqa: UP035 (pydantic 1 reads these)

from pydantic import BaseModel, Field

VALUES = (
    "Options by dotted keys, as /schema lists them, for example "
    '{"concepts[0].images": "/data/dog", "concepts[0].instance_prompt": "a photo of sks dog"}. '
    "What is left out keeps the presets' value, else the default."
)


class Nothing(BaseModel):
    """An empty object. Required, so that no other web page can make a browser send this."""


class Settings(BaseModel):
    """A configuration."""

    values: Dict[str, Any] = Field({}, description=VALUES)  # noqa: UP006
    presets: List[str] = Field(  # noqa: UP006
        [], description="Names of presets below the values, such as object-lora-sd1 and 8gb."
    )


class Start(Settings):
    """A run to start."""

    name: str = Field("run", description="Name of the run; a number is added if it is taken.")


class Command(BaseModel):
    """A request to a run."""

    verb: str = Field(
        ..., description="sample, save, stop, stop_after_step, stop_after_epoch or kill."
    )


class Step(BaseModel):
    """A saved step."""

    step: Optional[int] = Field(None, description="The step; the last if absent.")  # noqa: UP045


class Preset(BaseModel):
    """A preset of the user's."""

    values: Dict[str, Any] = Field(..., description=VALUES)  # noqa: UP006


class Name(BaseModel):
    """Something by its name."""

    name: str


class File(BaseModel):
    """A file by its path."""

    file: str = Field(..., description="A path in a folder that may be used.")


class Caption(BaseModel):
    """A picture's caption."""

    picture: str = Field(..., description="The picture's path.")
    text: str = Field(..., description="Empty removes the caption file.")


class Tool(BaseModel):
    """A tool's arguments."""

    values: Dict[str, Any] = Field(  # noqa: UP006
        ..., description="By name, as /tools lists them."
    )
