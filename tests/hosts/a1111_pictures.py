"""``python -m tests.hosts.a1111_pictures``: pocket learns the star in a real A1111's page, which is
photographed on the way for README and docs. ``A1111_DIR`` and ``A1111_PYTHON`` name the host."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import yaml
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.extension.browser.driving import Browser
from tests.hosts.webui_host import ROOT, WebUI, pocket_file

DEMO = ROOT / "dreambooth_core" / "assets" / "demo"
PICTURES = ROOT / "docs" / "pictures"
PANEL = "return document.querySelector('#dreambooth_live .db-live')?.dataset"
STEPS = 300
CHANGES = {
    "run.steps": STEPS,
    "save.every_steps": 100,
    "validation.every_steps": 50,
    "validation.prompts": ["a photo of a sks star with one eye and a smile on a purple background"],
}
"""To what the demo trains with; not typed into the page, whose form would be unfolded."""

SUBJECT = {
    "instance_prompt": "a photo of a sks star with one eye and a smile",
    "class_prompt": "a photo of a star",
}
WORD = SUBJECT["instance_prompt"]


def main() -> None:
    """Takes all pictures, one after the other."""
    folder = Path(tempfile.gettempdir()) / "webui"  # it is to be read in the pictures
    shutil.rmtree(folder, ignore_errors=True)
    try:
        host = WebUI("A1111", folder)
        host.install()
        pocket_file(host.models / "Stable-diffusion" / "pocket.safetensors")
        engine = host.environment["DREAMBOOTH_ENV"]
        host.environment["DREAMBOOTH_ENV"] = str(folder / "none")
        _taken(host, _set_up)
        host.environment["DREAMBOOTH_ENV"] = engine
        _taken(host, _train, _marks, _crop, _generate, _merge, _runs)
        _taken(host, _chinese)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _taken(host: WebUI, *steps: object) -> None:
    host.start()
    browser = Browser(host.url, width=1480, height=1080)
    try:
        browser.open()
        for step in steps:
            assert callable(step)
            step(browser, host)
    finally:
        browser.quit()
        host.stop()


def _photograph(browser: Browser, name: str) -> None:
    time.sleep(1.5)
    browser.picture(PICTURES / f"a1111-{name}.png")


def _set_up(browser: Browser, host: WebUI) -> None:
    browser.until(lambda: browser.find("#dreambooth_tab button").is_displayed(), "the page")
    _photograph(browser, "setup")


def _train(browser: Browser, host: WebUI) -> None:
    star = host.data / "outputs" / "dreambooth" / "uploads" / "star"
    shutil.copytree(DEMO / "star", star)
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    browser.write("#dreambooth_field_concepts_0_images", str(star), Keys.ENTER)
    browser.reads("#dreambooth_pictures_0", "5")
    for key, words in SUBJECT.items():
        browser.set(f"concepts[0].{key}", words)
    browser.write("#dreambooth_run_name", "star")
    demo = yaml.safe_load((DEMO / "pocket.yaml").read_text(encoding="utf-8"))
    del demo["concepts"]
    values = {
        **{f"{name}.{key}": value for name, part in demo.items() for key, value in part.items()},
        **CHANGES,
        "base.model": str(host.models / "Stable-diffusion" / "pocket.safetensors"),
        "concepts[0].images": str(star),
        **{f"concepts[0].{key}": words for key, words in SUBJECT.items()},
    }
    host.ours("/start", {"name": "star", "values": values})
    far = STEPS * 3 // 5
    browser.until(lambda: int(browser.script(f"{PANEL}.step") or 0) >= far, "steps", 1200)
    browser.script("window.scrollTo(0, 0)")
    _photograph(browser, "train")
    browser.until(lambda: browser.script(f"{PANEL}.state") == "finished", "the end", 1200)


def _marks(browser: Browser, host: WebUI) -> None:
    image = "#dreambooth_marks figure:nth-of-type({}) img"
    browser.until(lambda: browser.find(image.format(1)).is_displayed(), "the images")
    for place, wanted in ((1, "good"), (1, "bad"), (5, "good"), (6, "good"), (7, "good")):
        browser.press(image.format(place))
        now = f"#dreambooth_marks figure:nth-of-type({place})[data-marked={wanted}]"
        browser.until(lambda now=now: browser.find(now), wanted)
    browser.script(
        "document.querySelector('#dreambooth_marks_area').scrollIntoView({block: 'end'})"
    )
    _photograph(browser, "marks")


def _crop(browser: Browser, host: WebUI) -> None:
    browser.press("#dreambooth_pictures_0 figure img")
    paper = browser.until(lambda: browser.find("#dreambooth_crop_0 .db-cropper img"), "the image")
    browser.script("arguments[0].scrollIntoView({block: 'center'})", paper)
    wide, high = paper.size["width"], paper.size["height"]
    drag = ActionChains(browser.driver).move_to_element_with_offset(paper, -wide // 3, -high // 3)
    drag.click_and_hold().move_by_offset(wide * 2 // 3, high * 2 // 3).release().perform()
    browser.until(lambda: browser.value("#dreambooth_crop_sides_0"), "the sides")
    _photograph(browser, "crop")
    browser.press("#dreambooth_crop_close_0")


def _generate(browser: Browser, host: WebUI) -> None:
    host.until_published("star")
    browser.press("#dreambooth_use")
    browser.until(lambda: "<lora:" in browser.value("#txt2img_prompt"), "the prompt")
    for css, words in {
        "#txt2img_prompt": f"{WORD} on a sand background <lora:star:1>",
        "#txt2img_width": "128",
        "#txt2img_height": "128",
        "#txt2img_cfg_scale": "3",
        "#txt2img_batch_size": "4",
    }.items():
        browser.write(css, words, Keys.TAB)
    browser.script("document.querySelector('#txt2img_generate').click()")
    shown = "#txt2img_gallery img"
    browser.until(lambda: browser.driver.find_elements("css selector", shown), "images", 300)
    stop = "return document.querySelector('#txt2img_interrupt')?.offsetParent == null"
    browser.until(lambda: browser.script(stop), "the end of drawing", 300)
    browser.script("window.scrollTo(0, 0)")
    _photograph(browser, "generate")
    tab = "[...document.querySelectorAll('#txt2img_extra_tabs button')]"
    browser.script(f"{tab}.find(e => e.textContent.trim() === 'Lora').click()")
    browser.until(lambda: browser.find("#txt2img_lora_cards .card").is_displayed(), "the card")
    _photograph(browser, "lora")


def _merge(browser: Browser, host: WebUI) -> None:
    browser.show()
    browser.script("dreambooth.page(1)")
    browser.script("document.querySelectorAll('#dreambooth_adapter_tools button')[1].click()")
    loras = ("star.safetensors", "star-000100.safetensors")
    host.ours("/runs/star/publish", {"step": 100})
    for number, name in enumerate(loras, 1):
        browser.write(f"#dreambooth_adapter_merge_adapters_{number}", name, Keys.ENTER)
    browser.write("#dreambooth_adapter_merge_out", "both")
    browser.press("#dreambooth_adapter_merge")
    browser.reads("#dreambooth_tasks_adapters", "done")
    browser.script("window.scrollTo(0, 0)")
    _photograph(browser, "merge")


def _runs(browser: Browser, host: WebUI) -> None:
    browser.script("dreambooth.page(3)")
    browser.press("#dreambooth_runs [data-choose]")
    browser.until(lambda: browser.find("#dreambooth_run_show").is_displayed(), "its buttons")
    browser.script("window.scrollTo(0, 0)")
    _photograph(browser, "runs")
    host.call("/sdapi/v1/options", {"localization": "zh_CN"})


def _chinese(browser: Browser, host: WebUI) -> None:
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    browser.script("window.scrollTo(0, 0)")
    _photograph(browser, "chinese")


if __name__ == "__main__":
    main()
