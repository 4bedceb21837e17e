"""``python -m tests.hosts.comfyui_pictures``: runs the examples in a real ComfyUI's page, with
pocket learning the star, and puts beside each what it makes; those that need a large model show
their graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.hosts import comfyui_host, comfyui_page
from tests.hosts.comfyui_examples import (
    DEMO,
    EXAMPLES,
    RUNNABLE,
    Scale,
    adapted,
    example,
    put_style,
)
from tests.hosts.comfyui_pack import install
from tests.hosts.comfyui_server import Server, serving

SCALE = Scale(
    "",
    steps=300,
    size=128,
    class_images=24,
    overrides=f"{DEMO}run.batch_size=4\nsave.every_steps=100",
)
AS_IT_IS = "Try it with pocket"
TILE, MOST = 384, 3


def made(server: Server, done: dict[str, Any]) -> list[Image.Image]:
    """The square images that a prompt made, which curves and sheets are not; else the last sheet
    that it saved."""
    found, sheets = [], []
    for output in done["outputs"].values():
        for one in output.get("images", []):
            path = server.folder / one["type"] / one["subfolder"] / one["filename"]
            with Image.open(path) as opened:
                if opened.width == opened.height:
                    found.append(opened.convert("RGB"))
                elif one["type"] == "output":
                    sheets.append(opened.convert("RGB"))
    return found or sheets[-1:]


def thumbnail(pictures: list[Image.Image], path: Path) -> None:
    """The last of them side by side."""
    shown = pictures[-MOST:]
    if shown[0].width != shown[0].height:
        shown[0].thumbnail((TILE * MOST, TILE * MOST), Image.Resampling.LANCZOS)
        shown[0].save(path, quality=90)
        return
    sheet = Image.new("RGB", (TILE * len(shown), TILE))
    for number, picture in enumerate(shown):
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (TILE * number, 0))
    sheet.save(path, quality=90)


def main() -> None:
    """Makes the pictures; those named on the command line, or all."""
    host = comfyui_host.folder()
    install(host)
    put_style(host / "input")
    wanted = [path for path in EXAMPLES if path.stem in sys.argv[1:] or not sys.argv[1:]]
    wanted.sort(key=lambda path: ("Train" not in path.stem, path.stem))
    with serving(host, env={"DREAMBOOTH_ENV": sys.prefix}) as server:
        for path in wanted:
            shipped = example(path.stem)
            with comfyui_page.page(server) as driver:
                whole = shipped if path.stem == AS_IT_IS else adapted(shipped, SCALE)
                comfyui_page.load(driver, whole)
                picture = path.with_suffix(".jpg")
                if path not in RUNNABLE:
                    comfyui_page.photograph(driver, picture)
                    continue
                done = comfyui_page.run(driver, server, seconds=1500)
                assert done["status"]["status_str"] == "success", done["status"]
                if pictures := made(server, done):
                    thumbnail(pictures, picture)
                else:
                    comfyui_page.photograph(driver, picture)
                print(path.stem, flush=True)


if __name__ == "__main__":
    main()
