"""Draws a scene: background, body with pattern or second colour, outline, face."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from .backdrops import backdrop
from .outlines import FACES, Point, outline
from .world import RGB, Scene, Thing

INK: RGB = (26, 22, 28)
SUPERSAMPLING = 2


class Pose:
    """Maps a thing's own coordinates (unit circle) to pixels of the canvas."""

    def __init__(self, scene: Scene, side: int) -> None:
        self.radius = scene.scale * side / 2
        self.centre = (scene.x * side, scene.y * side)
        angle = math.radians(scene.angle)
        self.cos, self.sin = math.cos(angle) * self.radius, math.sin(angle) * self.radius

    def point(self, x: float, y: float) -> Point:
        """Pixel position of a point of the thing."""
        return (
            self.centre[0] + x * self.cos - y * self.sin,
            self.centre[1] + x * self.sin + y * self.cos,
        )

    def points(self, line: list[Point]) -> list[Point]:
        """Pixel positions of a line of points."""
        return [self.point(x, y) for x, y in line]


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """``share`` of b in a."""
    r, g, c = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return r, g, c


def pattern_colour(rgb: RGB) -> RGB:
    """What stripes and dots are painted with: much lighter, or darker on near-white."""
    pale = min(rgb) > 205
    return mix(rgb, (70, 70, 76), 0.45) if pale else mix(rgb, (255, 255, 255), 0.72)


def _disc(draw: ImageDraw.ImageDraw, at: Point, radius: float, fill: RGB) -> None:
    draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=fill)


def _paint_pattern(draw: ImageDraw.ImageDraw, thing: Thing, pose: Pose) -> None:
    light = pattern_colour(thing.rgb)
    if thing.pattern == "striped":
        for k in range(-3, 4):
            middle = k * 0.42
            bar = [(-1.2, middle - 0.1), (1.2, middle - 0.1)]
            bar += [(1.2, middle + 0.1), (-1.2, middle + 0.1)]
            draw.polygon(pose.points(bar), fill=light)
    elif thing.pattern == "dotted":
        for row in range(-3, 4):
            for column in range(-3, 4):
                x = 0.42 * column + (0.21 if row % 2 else 0.0)
                _disc(draw, pose.point(x, 0.38 * row), 0.12 * pose.radius, light)


def _paint_second(draw: ImageDraw.ImageDraw, thing: Thing, pose: Pose) -> None:
    if thing.second is None:
        return
    if thing.layout == "half":
        side = [(-1.3, 0.0), (1.3, 0.0), (1.3, 1.3), (-1.3, 1.3)]
        draw.polygon(pose.points(side), fill=thing.second)
    elif thing.layout == "centre":
        _disc(draw, pose.point(0, 0), 0.45 * pose.radius, thing.second)
    else:
        everything = [(-1.3, -1.3), (1.3, -1.3), (1.3, 1.3), (-1.3, 1.3)]
        draw.polygon(pose.points(everything), fill=thing.second)
        _disc(draw, pose.point(0, 0), 0.70 * pose.radius, thing.rgb)


def _paint_sticker(canvas: Image.Image, thing: Thing, pose: Pose) -> None:
    """The white paper under a sticker, and its shadow."""
    polygon = pose.points(outline(thing.shape, thing.arms, thing.rounded))
    draw = ImageDraw.Draw(canvas)
    for colour, share, drop in (((70, 70, 76), 0.17, 0.03), ((255, 255, 255), 0.15, 0.0)):
        edge = [(x + drop * canvas.width, y + drop * canvas.width) for x, y in polygon]
        draw.polygon(edge, fill=colour)
        width = round(share * canvas.width)
        draw.line([*edge, edge[0], edge[1]], fill=colour, width=width, joint="curve")


def _paint_body(canvas: Image.Image, thing: Thing, pose: Pose) -> None:
    polygon = pose.points(outline(thing.shape, thing.arms, thing.rounded))
    body = Image.new("RGB", canvas.size, thing.rgb)
    draw = ImageDraw.Draw(body)
    _paint_second(draw, thing, pose)
    _paint_pattern(draw, thing, pose)
    mask = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(mask).polygon(polygon, fill=255)
    canvas.paste(body, (0, 0), mask)
    width = max(2, round(canvas.width * 3 / 128))
    edge = ImageDraw.Draw(canvas)
    edge.line([*polygon, polygon[0], polygon[1]], fill=INK, width=width, joint="curve")


def _paint_eyes(draw: ImageDraw.ImageDraw, thing: Thing, pose: Pose) -> None:
    x, y, room = FACES[thing.shape]
    lift = 0.22 if thing.mouth else 0.0
    radius = {1: 0.52, 2: 0.34, 3: 0.27}[thing.eyes] * room
    for k in range(thing.eyes):
        across = (k - (thing.eyes - 1) / 2) * 2.35 * radius
        at = pose.point(x + across, y - lift * room)
        _disc(draw, at, radius * pose.radius * 1.14, INK)
        _disc(draw, at, radius * pose.radius * 0.95, (252, 252, 252))
        _disc(draw, at, radius * pose.radius * 0.50, INK)


def _paint_mouth(draw: ImageDraw.ImageDraw, thing: Thing, pose: Pose, width: int) -> None:
    x, y, room = FACES[thing.shape]
    down = y + (0.62 if thing.eyes else 0.2) * room
    if thing.mouth == "open":
        _disc(draw, pose.point(x, down + 0.08 * room), 0.24 * room * pose.radius, INK)
        return
    sign = 1.0 if thing.mouth == "smile" else -1.0
    steps = [(k / 6) - 1 for k in range(13)]
    arc = [(x + 0.5 * room * t, down + sign * 0.26 * room * (0.6 - t * t)) for t in steps]
    draw.line(pose.points(arc), fill=INK, width=width, joint="curve")


def paint(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB picture [size, size], drawn larger and averaged down."""
    side = size * SUPERSAMPLING
    canvas = backdrop(scene.background, side, random.Random(scene.seed))
    pose = Pose(scene, side)
    if scene.sticker:
        _paint_sticker(canvas, scene.thing, pose)
    _paint_body(canvas, scene.thing, pose)
    draw = ImageDraw.Draw(canvas)
    if scene.thing.eyes:
        _paint_eyes(draw, scene.thing, pose)
    if scene.thing.mouth:
        _paint_mouth(draw, scene.thing, pose, max(2, round(side * 3 / 128)))
    return canvas.reduce(SUPERSAMPLING)
