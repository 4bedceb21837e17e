"""Parts of the form, marks of images, who may use it, and the page before the engine is there."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.engine_environment import ROOT, this_python
from helpers.gradio import python_of
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from dreambooth_core.data.marks import read_marks
from dreambooth_core.environment import locate
from dreambooth_core.jobs import FileLock, RunFolder, write_receipt

from .conftest import Server, require_browser
from .driving import Browser

if TYPE_CHECKING:
    from collections.abc import Iterator

STAR = ROOT / "dreambooth_core" / "assets" / "demo" / "star"


def upload_and_caption(browser: Browser, server: Server) -> None:
    """Pictures that come through the page; their captions are edited in a table."""
    chosen = browser.driver.find_elements(
        "css selector", "#dreambooth_subject_area input[type=file]"
    )
    pictures = sorted(STAR.glob("*.png"))[:2]
    chosen[0].send_keys("\n".join(map(str, pictures)))
    browser.reads("#dreambooth_pictures_0", "2")
    folder = Path(browser.value("#dreambooth_field_concepts_0_images"))
    assert {path.name for path in folder.iterdir()} == {path.name for path in pictures}
    assert folder.is_relative_to(server.data)
    browser.script("document.querySelectorAll('.db-subject .label-wrap')[0].click()")
    cell = "#dreambooth_captions_0 tbody tr:first-child td:nth-child(2)"

    def edited() -> bool:
        there = browser.find(cell)
        browser.script("arguments[0].scrollIntoView({block: 'center'})", there)
        ActionChains(browser.driver).double_click(there).perform()
        browser.driver.switch_to.active_element.send_keys("a green star", Keys.ENTER)
        return "a green star" in browser.text(cell)

    browser.until(edited, "the caption", 30)
    browser.press("#dreambooth_captions_0_save")
    browser.reads("#dreambooth_subject_area", "captions saved")
    assert [path.read_text().strip() for path in folder.glob("*.txt")] == ["a green star"]


def words_for_all_and_undo(browser: Browser, server: Server) -> None:
    """Words are added to each caption, saved, and taken back."""
    folder = Path(browser.value("#dreambooth_field_concepts_0_images"))
    (file,) = folder.glob("*.txt")
    browser.write("#dreambooth_captions_0_before", "a drawing of")
    browser.press("#dreambooth_captions_0_add")
    browser.reads("#dreambooth_captions_0", "a drawing of, a green star")
    assert file.read_text() == "a green star\n"
    browser.press("#dreambooth_captions_0_save")
    browser.until(lambda: file.read_text() == "a drawing of, a green star\n", "the words")
    browser.press("#dreambooth_captions_0_undo")
    browser.until(lambda: file.read_text() == "a green star\n", "the caption as it was")
    browser.press("#dreambooth_captions_0_undo")
    browser.until(lambda: not file.exists(), "no caption")
    browser.press("#dreambooth_captions_0_undo")
    browser.reads("#dreambooth_captions_0_said", "nothing to undo")


def crop_and_take_back(browser: Browser, server: Server) -> None:
    """Drawn on the image itself, kept beside it, shown in the gallery."""
    folder = Path(browser.value("#dreambooth_field_concepts_0_images"))
    browser.press("#dreambooth_pictures_0 figure img")
    paper = browser.until(lambda: browser.find("#dreambooth_crop_0 .db-cropper img"), "the image")
    browser.script("arguments[0].scrollIntoView({block: 'center'})", paper)
    wide, high = paper.size["width"], paper.size["height"]
    drag = ActionChains(browser.driver).move_to_element_with_offset(paper, -wide // 4, -high // 4)
    drag.click_and_hold().move_by_offset(wide // 2, high // 4).release().perform()
    browser.until(lambda: browser.value("#dreambooth_crop_sides_0"), "the sides")
    browser.press("#dreambooth_crop_save_0")
    browser.reads("#dreambooth_pictures_0", "cropped")
    (file,) = folder.glob("*.crop.json")
    crop = json.loads(file.read_text())
    for side, share in {"left": 0.25, "top": 0.25, "right": 0.75, "bottom": 0.5}.items():
        assert abs(crop[side] - share) < 0.02, crop
    browser.press("#dreambooth_pictures_0 figure img")
    browser.until(lambda: browser.find("#dreambooth_crop_0 .db-crop-frame[style]"), "the frame")
    sides = browser.value("#dreambooth_crop_sides_0")
    browser.press("#dreambooth_crop_suggest_0")
    browser.until(lambda: browser.value("#dreambooth_crop_sides_0") != sides, "a suggestion")
    browser.press("#dreambooth_crop_whole_0")
    browser.until(lambda: not list(folder.glob("*.crop.json")), "the crop to go")


def several_subjects(browser: Browser) -> None:
    """A second one can be added, and what it lacks is told at its field."""
    browser.press("#dreambooth_subject_add")
    browser.until(lambda: browser.find("#dreambooth_field_concepts_1_images").is_displayed(), "it")
    browser.press("#dreambooth_check")
    browser.until(lambda: browser.find("#dreambooth_field_concepts_1_images.db-wrong"), "the mark")
    browser.press("#dreambooth_subject_drop")
    gone = "return document.querySelector('#dreambooth_field_concepts_1_images')?.offsetParent"
    browser.until(lambda: browser.script(f"{gone} == null"), "it to go")


def presets(browser: Browser) -> None:
    """A preset of one's own keeps values; other presets leave alone what was set by hand."""
    browser.set("run.steps", "777")
    browser.script("document.querySelector('#dreambooth_kind input[value=style]').click()")
    browser.until(lambda: "style-lora-sd1" in browser.text("#dreambooth_preset_about"), "style")
    browser.until(lambda: browser.value("#dreambooth_field_method_rank") == "32", "its rank")
    assert browser.value("#dreambooth_field_run_steps") == "777"
    wraps = "document.querySelectorAll('#dreambooth_method_area > div > .label-wrap')"
    browser.script(f"[...{wraps}].at(-1).click()")
    browser.write("#dreambooth_preset_name", "mine")
    browser.press("#dreambooth_preset_save")
    browser.reads("#dreambooth_method_area", "saved")
    browser.set("run.steps", "")
    browser.write("#dreambooth_preset", "mine", Keys.ENTER)
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "777", "the preset")


def the_host_remembers_no_value(server: Server) -> None:
    """Else an old value in ui-config.json would win over a new default."""
    with urllib.request.urlopen(server.address + "stand-in/remembered") as answer:
        assert json.load(answer) == {"names": []}


def a_host_without_a_model(browser: Browser, server: Server) -> None:
    """Offers what comes with the engine, says what that is, and where models go."""
    browser.until(lambda: browser.value("#dreambooth_field_base_model") == "pocket", "pocket")
    browser.reads("#dreambooth_base_about", "comes with the engine")
    folder = server.data / "models" / "Stable-diffusion"
    browser.reads("#dreambooth_base_about", str(folder))


def test_the_form(browser: Browser, server: Server) -> None:
    a_host_without_a_model(browser, server)
    the_host_remembers_no_value(server)
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    upload_and_caption(browser, server)
    words_for_all_and_undo(browser, server)
    crop_and_take_back(browser, server)
    several_subjects(browser)
    presets(browser)


def ask(address: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(address, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def test_every_function_asks_for_the_word_of_the_page(server: Server) -> None:
    """Another web page calls the tab's functions: gradio lets it, the tab does not. Nor does it let
    a name that leads here by DNS rebinding, under which gradio tells all that its page holds."""
    _, config = ask(server.address + "config")
    named = {part["props"].get("elem_id"): part for part in config["components"]}
    carrier = named["dreambooth_word"]
    status, told = ask(server.address + "dreambooth/page", sec_fetch_site="same-origin")
    assert status == 200
    for foreign in (
        {"host": f"rebound.example:{server.port}"},
        {"origin": "https://page.example"},
        {"sec_fetch_site": "cross-site"},
    ):
        assert ask(server.address + "dreambooth/page", **foreign)[0] == 403
    assert told["word"] not in json.dumps(config)
    ours = [(n, each) for n, each in enumerate(config["dependencies"]) if each["backend_fn"]]
    assert len(ours) > 40
    for _, each in ours:
        assert each["inputs"][0] == carrier["id"], each

    def call(number: int, shown: str) -> int:
        inputs = ours[number][1]["inputs"]
        given = [shown, *("" for _ in inputs[1:])]
        body = {"data": given, "fn_index": ours[number][0], "session_hash": "x"}
        return ask(server.address + "run/predict", body)[0]

    quiet = [n for n, (_, each) in enumerate(ours) if not each["queue"]]
    few = next(n for n in quiet if len(ours[n][1]["inputs"]) == 2)
    assert call(few, told["word"]) == 200
    for wrong in ("", "x" * 32):
        assert call(few, wrong) == 500


def finished(server: Server) -> RunFolder:
    """A run that is over, with two images of one prompt."""
    run = RunFolder.create(server.runs, "star")
    concept = f"{{images: '{STAR.as_posix()}', instance_prompt: a photo of a sks star}}"
    settings = f"base: {{model: pocket}}\nconcepts: [{concept}]\nrun: {{steps: 400}}\n"
    run.config.write_text(settings, encoding="utf-8")
    (run.path / "star.safetensors").write_bytes(b"")
    run.events.write("started", step=0, steps=400)
    for n in range(2):
        image = run.samples / f"step-000400-0{n}.png"
        Image.new("RGB", (64, 64), (200 * n, 90, 30)).save(image)
        run.events.write("sample", path=run.relative(image), step=400, prompt="a star", seed=n)
    run.events.write("finished", outcome="done", results=["star.safetensors"])
    write_receipt(run, base={"fingerprint": "b"}, result={"file": "star.safetensors", "steps": 400})
    return run


# What a page of the other gradio does differently is in the form, for both.
@pytest.mark.parametrize(
    "python", ["a1111", pytest.param("forge", marks=pytest.mark.long)], indirect=True
)
def test_clicks_mark_images_and_the_form_goes_on(
    server: Server, request: pytest.FixtureRequest
) -> None:
    run = finished(server)
    browser: Browser = request.getfixturevalue("browser")  # with the run on its page
    image = "#dreambooth_marks figure:nth-of-type({}) img"
    for place, wanted in ((1, "good"), (2, "good"), (2, "bad")):
        browser.press(image.format(place))
        now = f"#dreambooth_marks figure:nth-of-type({place})[data-marked={wanted}]"
        browser.until(lambda now=now: browser.find(now), wanted)
    assert [one.mark for one in read_marks(run.path).images] == ["good", "bad"]
    browser.press("#dreambooth_continue")
    browser.reads("#dreambooth_marks_said", "Its settings")
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "100", "the steps")
    assert browser.value("#dreambooth_field_marks_file") == str(run.samples / "marks.json")
    assert browser.value("#dreambooth_field_objective_loss") == "dpo"
    assert browser.value("#dreambooth_field_method_init_from").endswith("star.safetensors")


@pytest.fixture
def bare_server(tmp_path: Path) -> Iterator[Server]:
    """A host whose engine is not there yet."""
    require_browser()
    made = Server(python_of("a1111"), tmp_path, engine=False)
    try:
        made.wait()
        yield made
    finally:
        made.close()


def test_before_the_engine_is_there_only_setting_up_is_offered(bare_server: Server) -> None:
    browser = Browser(bare_server.address)
    try:
        browser.open()
        browser.reads("#dreambooth_setup", "PyTorch")
        assert browser.find("#dreambooth_setup_begin").is_displayed()
        others = browser.driver.find_elements("css selector", "#dreambooth_tab button")
        shown = [each.get_attribute("id") for each in others if each.is_displayed()]
        assert shown == ["dreambooth_setup_begin"]
        rests = "return document.querySelector('#dreambooth_setup_begin')?.offsetParent == null"
        with FileLock(locate(ROOT, {"DREAMBOOTH_ENV": str(bare_server.engine)}).lock):
            browser.until(lambda: browser.script(rests), "the button to rest while it works")
        browser.until(lambda: not browser.script(rests), "the button")
        this_python(bare_server.engine)  # as if it was pressed, and gigabytes later
        browser.until(lambda: browser.find("#dreambooth_train").is_displayed(), "the other areas")
        browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    finally:
        browser.quit()
