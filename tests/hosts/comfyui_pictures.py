"""``python -m tests.hosts.comfyui_pictures``: runs every example in a real ComfyUI's page, with
pocket learning the star, and puts their pictures beside them."""

from __future__ import annotations

import sys

from tests.hosts import comfyui_host, comfyui_page
from tests.hosts.comfyui_examples import DEMO, RUNNABLE, Scale, adapted, example, put_style
from tests.hosts.comfyui_pack import install
from tests.hosts.comfyui_server import serving

SCALE = Scale(
    "",
    steps=300,
    size=128,
    class_images=24,
    overrides=f"{DEMO}run.batch_size=4\nsave.every_steps=100",
)


def main() -> None:
    """Makes the pictures; those named on the command line, or all."""
    host = comfyui_host.folder()
    install(host)
    put_style(host / "input")
    wanted = [path for path in RUNNABLE if path.stem in sys.argv[1:] or not sys.argv[1:]]
    wanted.sort(key=lambda path: ("Train" not in path.stem, path.stem))
    with serving(host, env={"DREAMBOOTH_ENV": sys.prefix}) as server:
        for path in wanted:
            with comfyui_page.page(server) as driver:
                comfyui_page.load(driver, adapted(example(path.stem), SCALE))
                done = comfyui_page.run(driver, server, seconds=1500)
                assert done["status"]["status_str"] == "success", done["status"]
                comfyui_page.photograph(driver, path.with_suffix(".jpg"))
                print(path.stem, flush=True)


if __name__ == "__main__":
    main()
