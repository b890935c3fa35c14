"""What a viewer may say over its WebSocket: a closed, checked list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

PlaneName = Literal["raw", "clean", "difference", "sd"]
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Pixel = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
Id = Annotated[int, Field(ge=0, le=2**53)]
Limit = Annotated[float, Field(allow_inf_nan=False)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Region(_Message):
    """A rectangle or a line, in detector pixels."""

    id: str = Field(min_length=1, max_length=64)
    kind: Literal["rectangle", "line"]
    x0: Coordinate
    y0: Coordinate
    x1: Coordinate
    y1: Coordinate
    width: float = Field(default=1.0, ge=1, le=200)
    name: str = Field(default="", max_length=80)
    colour: str = Field(default="#888888", pattern=r"^#[0-9a-fA-F]{6}$")

    @property
    def geometry(self) -> tuple[str, float, float, float, float, float]:
        """What its numbers depend on."""
        return (self.kind, self.x0, self.y0, self.x1, self.y1, self.width)


class View(_Message):
    """What to show from now on."""

    type: Literal["view"]
    planes: tuple[PlaneName, ...] = Field(default=("raw", "clean"), min_length=1, max_length=4)
    region: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    size: tuple[Annotated[int, Field(ge=1, le=2048)], Annotated[int, Field(ge=1, le=2048)]] = (
        1024,
        1024,
    )
    encoding: Literal["u16", "jpeg"] = "u16"
    quality: int = Field(default=80, ge=30, le=95)
    limits: dict[PlaneName, tuple[Limit, Limit]] = {}
    transfer: Literal["linear", "log", "sqrt"] = "linear"
    maps: tuple[Annotated[str, Field(max_length=120)], ...] = Field(default=(), max_length=8)
    channel: str | None = Field(default=None, max_length=80)
    max_fps: float = Field(default=10.0, ge=0.2, le=30)

    @property
    def key(self) -> tuple[object, ...]:
        """What its pixels depend on: equal keys can share one encoding."""
        slow = (self.quality, self.transfer, tuple(sorted(self.limits.items())))
        return (
            self.planes,
            self.region,
            self.size,
            self.encoding,
            self.maps,
            self.channel,
            slow if self.encoding == "jpeg" else None,
        )


class Ack(_Message):
    """A frame is on the screen."""

    type: Literal["ack"]
    seq: Id


class Pause(_Message):
    """No more new frames."""

    type: Literal["pause"]


class Seek(_Message):
    """Show a kept frame."""

    type: Literal["seek"]
    id: Id


class Live(_Message):
    """Newest frames again."""

    type: Literal["live"]


class Value(_Message):
    """Exact values of one pixel of the frame shown."""

    type: Literal["value"]
    request: Id
    x: Pixel
    y: Pixel


class Regions(_Message):
    """This viewer's regions."""

    type: Literal["regions"]
    regions: tuple[Region, ...] = Field(max_length=16)


class Strips(_Message):
    """Metric strips wanted."""

    type: Literal["strips"]
    names: tuple[Annotated[str, Field(max_length=120)], ...] | None = Field(max_length=64)


Inbound = Annotated[
    View | Ack | Pause | Seek | Live | Value | Regions | Strips, Field(discriminator="type")
]
INBOUND: TypeAdapter[Inbound] = TypeAdapter(Inbound)


class SharedRegions(_Message):
    """Body of ``PUT api/v1/regions``."""

    regions: tuple[Region, ...] = Field(max_length=16)


class NewAnnotation(_Message):
    """Body of ``POST api/v1/annotations``."""

    text: str = Field(min_length=1, max_length=1000)
    index: Id | None = None


class Login(_Message):
    """Body of ``POST api/v1/login``."""

    token: str = Field(min_length=1, max_length=512)
