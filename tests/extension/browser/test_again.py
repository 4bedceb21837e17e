"""Going on with a run from the list of runs, and converting a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.engine_environment import ROOT
from selenium.webdriver.common.keys import Keys

from dreambooth_core.commands.main import main
from dreambooth_core.formats.detect import identify

from .test_story import describe_subject, state, step

if TYPE_CHECKING:
    from .conftest import Server
    from .driving import Browser


KEPT = "return sessionStorage.getItem('dreambooth.form')"


def train_a_little(browser: Browser) -> int:
    """A run that is stopped after some steps; returns how many."""
    describe_subject(browser)
    browser.write("#dreambooth_run_name", "star")
    browser.press("#dreambooth_train")
    browser.until(lambda: state(browser) == "running" and step(browser) > 2, "progress")
    browser.press("#dreambooth_stop")
    browser.until(lambda: state(browser) == "stopped", "the end")
    return step(browser)


def resume(browser: Browser, done: int) -> None:
    """A page that is loaded again has what was in it, one that is opened anew an empty form: the
    run's settings fill it, and the run resumes."""
    browser.set("run.steps", "4321")
    browser.until(lambda: "4321" in str(browser.script(KEPT)), "the form to be kept")
    browser.refresh()
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "4321", "the steps")
    browser.until(lambda: browser.value("#dreambooth_run_name") == "star", "the name")
    assert browser.value("#dreambooth_field_concepts_0_instance_prompt") == "a photo of a sks star"
    browser.reads("#dreambooth_pictures_0", "5")
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
    browser.reads("#dreambooth_tasks_models", "done")
    folder = server.runs.parent / "models" / "unpacked"
    assert identify(folder).family == "sd1"


def test_a_run_goes_on_and_a_model_is_converted(browser: Browser, server: Server) -> None:
    resume(browser, train_a_little(browser))
    convert(browser, server)
