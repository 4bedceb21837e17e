"""The tab from the first picture to a merged adapter, as a person clicks it; on the way a run is
resumed, and a model converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.engine_environment import ROOT
from selenium.webdriver.common.keys import Keys

from dreambooth_core.commands.main import main
from dreambooth_core.families.recognition.detect import identify

if TYPE_CHECKING:
    from .conftest import Server
    from .driving import Browser

STAR = ROOT / "dreambooth_core" / "assets" / "demo" / "star"
NAME = "star & <b>moon</b>"
PANEL = "return document.querySelector('#dreambooth_live .db-live')?.dataset"
KEPT = "return sessionStorage.getItem('dreambooth.form')"


# Read in one go: the panel is drawn anew each second.
def step(browser: Browser) -> int:
    return int(browser.script(f"{PANEL}.step") or 0)


def state(browser: Browser) -> str:
    return str(browser.script(f"{PANEL}.state"))


def describe_subject(browser: Browser) -> None:
    """The page offers what suits the base; pictures are accounted for."""
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    assert "object-lora-sd1" in browser.text("#dreambooth_preset_about")
    assert "Stable Diffusion 1" in browser.text("#dreambooth_base_about")
    browser.write("#dreambooth_field_concepts_0_images", str(STAR), Keys.ENTER)
    browser.reads("#dreambooth_pictures_0", "5")
    browser.set("concepts[0].instance_prompt", "a photo of a sks star")
    for key, words in {
        "data.resolution": "64",
        "run.steps": "4000",
        "validation.prompts": "a photo of a sks star",
        "validation.num_inference_steps": "2",
        "save.every_steps": "2000",
    }.items():
        browser.set(key, words)


def mark_wrong_value(browser: Browser) -> None:
    """A wrong value is marked at its field, and the way back is a click."""
    browser.set("run.batch_size", "0")
    browser.press("#dreambooth_check")
    browser.until(lambda: browser.find("#dreambooth_field_run_batch_size.db-wrong"), "the mark")
    browser.set("run.batch_size", "1")
    browser.press("#dreambooth_check")
    browser.reads("#dreambooth_report", "Everything is in order.")
    report = browser.text("#dreambooth_report")
    assert "64x64" in report and "4000" in report
    assert not browser.driver.find_elements("css selector", ".db-wrong")


def train_and_come_back(browser: Browser, server: Server) -> None:
    """Progress is live; Reload UI, and a page that is loaded again, lose neither the run nor what
    was in the form."""
    browser.write("#dreambooth_run_name", NAME)
    browser.press("#dreambooth_train")
    browser.until(lambda: state(browser) == "running" and step(browser) > 3, "progress")
    assert browser.script("return document.querySelector('#dreambooth_live .db-calm') !== null")
    browser.press("#dreambooth_sample")
    browser.until(lambda: browser.find("#dreambooth_samples figure img"), "a sample")
    browser.set("run.steps", "4321")
    browser.until(lambda: "4321" in str(browser.script(KEPT)), "the form to be kept")
    before = step(browser)
    server.reload()
    browser.refresh()
    browser.until(lambda: step(browser) > before, "the run after Reload UI")
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "4321", "the steps")
    browser.until(lambda: browser.value("#dreambooth_run_name") == NAME, "the name")
    assert browser.value("#dreambooth_field_concepts_0_instance_prompt") == "a photo of a sks star"
    browser.reads("#dreambooth_pictures_0", "5")


def use_result(browser: Browser, server: Server) -> str:
    """What was saved is used in txt2img; returns the adapter's name."""
    browser.press("#dreambooth_stop")
    browser.until(lambda: state(browser) == "stopped", "the end")
    browser.reads("#dreambooth_results_area", "Generate")
    select = "return document.querySelector('#dreambooth_select')?.offsetParent == null"
    assert browser.script(select), "an adapter is no checkpoint"
    browser.press("#dreambooth_use")
    browser.until(lambda: "<lora:" in browser.value("#txt2img_prompt"), "the prompt")
    prompt = browser.value("#txt2img_prompt")
    name = prompt.partition("<lora:")[2].partition(":")[0]
    assert (server.loras / f"{name}.safetensors").is_file()
    assert "sks" in prompt
    browser.show()
    return name


def resume(browser: Browser) -> None:
    """A page that is opened anew has an empty form: the run's settings fill it, and the run
    resumes."""
    done = step(browser)
    browser.script("sessionStorage.clear()")
    browser.refresh()
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "500", "the preset")
    browser.script("dreambooth.page(3)")
    browser.press("#dreambooth_runs [data-choose]")
    browser.until(lambda: browser.find("#dreambooth_run_resume").is_displayed(), "its buttons")
    kill = "return document.querySelector('#dreambooth_run_kill')?.offsetParent == null"
    assert browser.script(kill), "a stopped run has no process to end"
    browser.press("#dreambooth_run_settings")
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "4000", "its settings")
    assert browser.value("#dreambooth_field_concepts_0_instance_prompt") == "a photo of a sks star"
    browser.script("dreambooth.page(3)")
    browser.press("#dreambooth_run_resume")
    browser.reads("#dreambooth_runs_said", "resumes")
    browser.script("dreambooth.page(0)")
    browser.until(lambda: state(browser) == "running" and step(browser) > done, "more steps")
    browser.press("#dreambooth_stop")
    browser.until(lambda: state(browser) == "stopped", "the end")


def convert(browser: Browser, server: Server) -> None:
    """A checkpoint becomes a diffusers folder, away from where the host would list its parts."""
    models = server.data / "models" / "Stable-diffusion"
    pocket = ROOT / "dreambooth_core" / "assets" / "pocket"
    assert main(["convert", str(pocket), str(models / "pocket.safetensors")]) == 0
    browser.script("dreambooth.page(2)")
    source = str(models / "pocket.safetensors")
    browser.write("#dreambooth_model_convert_source", source, Keys.ENTER)
    browser.write("#dreambooth_model_convert_target", "unpacked/")
    browser.press("#dreambooth_model_convert")
    folder = server.runs.parent / "models" / "unpacked"
    browser.until(folder.is_dir, "the folder")
    browser.reads("#dreambooth_tasks_models", "done")
    assert identify(folder).family == "sd1"


def merge(browser: Browser, server: Server, name: str) -> Path:
    """An adapter is inspected, and merged with itself."""
    browser.script("dreambooth.page(1)")
    browser.write("#dreambooth_inspect_file", f"{name}.safetensors", Keys.ENTER)
    browser.press("#dreambooth_inspect")
    browser.reads("#dreambooth_inspected", "16")
    browser.script("document.querySelectorAll('#dreambooth_adapter_tools button')[1].click()")
    for number in ("1", "2"):
        box = f"#dreambooth_adapter_merge_adapters_{number}"
        browser.write(box, f"{name}.safetensors", Keys.ENTER)
    browser.write("#dreambooth_adapter_merge_out", "both")
    browser.press("#dreambooth_adapter_merge")
    browser.reads("#dreambooth_tasks_adapters", "done")
    return server.loras / "both.safetensors"


def show_evaluation(browser: Browser, server: Server) -> None:
    """The page that is there is shown, and nothing in it is run."""
    browser.script("dreambooth.page(3)")
    browser.press("#dreambooth_runs [data-choose]")
    browser.press("#dreambooth_run_evaluation")
    browser.reads("#dreambooth_evaluation", "not evaluated yet")
    (run,) = server.runs.glob("star*")
    evil = "<p id=likeness>likeness</p><script>document.body.innerHTML = 'gone'</script>"
    (run / "evaluation.html").write_text(evil)
    browser.press("#dreambooth_run_evaluation")
    frame = browser.until(lambda: browser.find("#dreambooth_evaluation iframe"), "the page")
    browser.driver.switch_to.frame(frame)
    browser.until(lambda: browser.find("#likeness").text == "likeness", "its text")
    browser.driver.switch_to.default_content()


def delete(browser: Browser, server: Server) -> None:
    """A run is deleted after a question."""
    browser.script("dreambooth.page(3)")
    browser.press("#dreambooth_runs [data-choose]")
    browser.press("#dreambooth_run_delete")
    browser.press("#dreambooth_delete_yes")
    browser.reads("#dreambooth_runs", "No runs yet.")
    assert not list(server.runs.glob("star*"))


# What a page of the other gradio does differently is in test_form.py, for both.
@pytest.mark.parametrize(
    "python", ["forge", pytest.param("a1111", marks=pytest.mark.long)], indirect=True
)
def test_from_pictures_to_a_merged_adapter(browser: Browser, server: Server) -> None:
    describe_subject(browser)
    mark_wrong_value(browser)
    train_and_come_back(browser, server)
    name = use_result(browser, server)
    resume(browser)
    merged = merge(browser, server, name)
    assert merged.is_file()
    convert(browser, server)
    show_evaluation(browser, server)
    delete(browser, server)
    assert merged.is_file()
    errors = [each for each in browser.driver.get_log("browser") if "javascript" in each["source"]]
    assert errors == []
