"""A page of the host, as a person uses it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 120.0
BOX = "{css} textarea, {css} input:not([type=checkbox]):not([type=range])"
GONE = (
    NoSuchElementException,
    StaleElementReferenceException,
    ElementNotInteractableException,
)
"""What happens while gradio draws something anew."""


def chromium() -> str | None:
    """The browser's program."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Browser:
    """Headless Chromium with the tab on its page."""

    def __init__(self, address: str, width: int = 1500, height: int = 1200) -> None:
        self.address = address
        options = Options()
        options.binary_location = chromium() or ""
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        service = Service(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self) -> None:
        """The page, and the tab on it."""
        self.driver.get(self.address)
        self.show()

    def show(self) -> None:
        """The tab, after the page was drawn. Gradio draws it twice."""
        self.until(lambda: self.script("return typeof dreambooth !== 'undefined'"), "the script")
        tab = '//*[@id="tabs"]//button[normalize-space()="DreamBooth"]'

        def shown() -> bool:
            self.driver.find_element(By.XPATH, tab).click()
            return self.find("#dreambooth_tab").is_displayed()

        self.until(shown, "the tab")

    def refresh(self) -> None:
        """Loads the page again."""
        self.driver.refresh()
        self.show()

    def quit(self) -> None:
        self.driver.quit()

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def until(self, true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Waits until something is true, and returns it.

        Raises:
            AssertionError: it took too long; says what, and what the page shows.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = true()
            except GONE:
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what}; the page shows:\n{self.text()}")
            time.sleep(0.2)

    def text(self, css: str = "#dreambooth_tab") -> str:
        """What is to be read in a part of the page; empty where it is not there."""
        found = self.driver.find_elements(By.CSS_SELECTOR, css)
        try:
            return "\n".join(each.text for each in found)
        except StaleElementReferenceException:
            return ""

    def reads(self, css: str, words: str, seconds: float = PATIENCE) -> None:
        """Waits until words are to be read there."""
        self.until(lambda: words in self.text(css), f"{words!r} in {css}", seconds)

    def press(self, css: str) -> None:
        """Clicks on something as soon as that is possible."""

        def pressed() -> bool:
            element = self.find(css)
            self.script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.until(pressed, f"{css} to be pressed", 30)

    def box(self, css: str) -> WebElement:
        """The text box in a control."""
        return self.find(BOX.format(css=css))

    def value(self, css: str) -> str:
        """What a text box shows; empty where there is none."""
        found = "return document.querySelector(arguments[0])?.value"
        return str(self.script(found, BOX.format(css=css)) or "")

    def write(self, css: str, words: str, *keys: str) -> None:
        """Types words into a text box in place of what is there."""

        def written() -> bool:
            box = self.box(css)
            self.script("arguments[0].scrollIntoView({block: 'center'})", box)
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(Keys.BACKSPACE, words, *keys)
            return self.box(css).get_attribute("value") == words

        self.until(written, f"{words!r} in {css}", 30)

    def set(self, key: str, words: str) -> None:
        """Types a value into the field of an option, wherever it is folded away."""
        self.script("dreambooth.show(arguments[0])", key)
        name = "".join(c if c.isalnum() else "_" for c in key).replace("__", "_")
        self.write(f"#dreambooth_field_{name}", words, Keys.TAB)

    def picture(self, path: Path) -> None:
        """What the window shows, as a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
