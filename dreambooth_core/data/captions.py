"""Captions: what each image is said to show, in each epoch.

A caption starts from the instance prompt or the text beside the image, its tags are shuffled and
dropped, it is put into a template, and now and then it is left out altogether. Each of these draws
is keyed by (seed, epoch, image, turn), so a resumed run reads the same captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.data.inventory import ImageFile
from dreambooth_core.data.options import DataOptions
from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import UserError
from dreambooth_core.randomness import Key, permutation, uniform

LARGEST = 64_000
"""Bytes of a caption: a hundred times what text encoders read."""
FILEWORDS = "[filewords]"
NAME = "[name]"
PROMPT = "[prompt]"
_LEADING_NUMBERS = re.compile(r"^[-\d]+[-_. ]+")


def read_caption(path: Path) -> str:
    """The text of a caption file on one line; empty if there is none or it cannot be read.

    UTF-8 with or without a mark, UTF-16 with one, and, as a last resort, Latin-1.

    Raises:
        UserError: it is longer than any caption.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
    except (OSError, UserError):
        return ""
    if len(content) > LARGEST:
        what = f"this caption has more than {LARGEST:,} bytes"
        raise UserError(what, where=path, do="Shorten it: text encoders read a few hundred.")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16", "replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    return _one_line(text.replace("\0", " "))


def words_of(image: ImageFile) -> str:
    """What ``[filewords]`` stands for: the caption file's text, else the words of the file name.

    Numbers at the front of the name are left out and ``_`` is a space: ``012_red_ball.png`` is
    "red ball", as in the WebUI's textual inversion. A name of digits alone has no words.
    """
    if image.caption is not None and (text := read_caption(image.caption)):
        return text
    stem = image.path.stem
    if not any(character.isalpha() for character in stem):
        return ""
    return _one_line(_LEADING_NUMBERS.sub("", stem).replace("_", " "))


def fill(template: str, *, prompt: str = "", words: str = "", name: str = "") -> str:
    """A template with its placeholders filled, free of gaps that empty ones leave behind."""
    text = template.replace(PROMPT, prompt).replace("{}", prompt)
    if FILEWORDS in text and not words:
        text = re.sub(r"\s*,?\s*" + re.escape(FILEWORDS), "", text).lstrip(", ")
    return _one_line(text.replace(FILEWORDS, words).replace(NAME, name))


def caption_of(image: ImageFile, prompt: str, mode: str = "auto", name: str = "") -> str:
    """The image's caption before anything is drawn.

    Args:
        prompt: The instance prompt (or the class prompt).
        mode: One of ``DataOptions.captions``. ``files`` falls back on the prompt where there is
            no caption file.
    """
    words = words_of(image) if mode == "filewords" or FILEWORDS in prompt else ""
    if mode == "filewords" and FILEWORDS not in prompt:
        return words or fill(prompt, name=name)
    if mode == "files" or (mode == "auto" and FILEWORDS not in prompt):
        text = read_caption(image.caption) if image.caption is not None else ""
        if text:
            return fill(text, words=words, name=name)
    return fill(prompt, words=words, name=name)


def vary_tags(
    text: str, *key: Key, shuffle: bool = False, keep: int = 0, dropout: float = 0.0
) -> str:
    """The comma-separated parts of a caption, in a new order and with some left out.

    The first ``keep`` stay as they are. Should all others be dropped and none be kept, the first
    stays: an empty caption is what caption dropout is for.
    """
    tags = [tag for tag in (part.strip() for part in text.split(",")) if tag]
    fixed, free = tags[:keep], list(enumerate(tags[keep:]))
    if dropout > 0:
        free = [(i, tag) for i, tag in free if uniform("tag dropout", *key, i) >= dropout]
    if shuffle:
        free = [free[i] for i in permutation(len(free), "tags", *key)]
    return ", ".join([*fixed, *(tag for _, tag in free)]) or ", ".join(tags[:1])


class Captioner:
    """The captions of a run's instance images.

    Args:
        texts: Each image's caption as :func:`caption_of` gives it.
        words: What ``[filewords]`` in a template stands for, for each image.
        names: What ``[name]`` in a template stands for, for each image.
    """

    def __init__(
        self,
        texts: Sequence[str],
        options: DataOptions,
        *,
        seed: int,
        words: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.texts = list(texts)
        self.words = list(words) if words is not None else [""] * len(self.texts)
        self.names = list(names) if names is not None else [""] * len(self.texts)
        self.options = options
        self.seed = seed
        drawn = self.varies_tags or options.caption_dropout_rate or options.templates
        self.fixed = None if drawn else self.texts
        """The captions, where each is the same at every showing."""

    def caption(self, image: int, epoch: int, turn: int = 0) -> str:
        """The caption of one showing."""
        options = self.options
        key = (self.seed, epoch, image, turn)
        rate = options.caption_dropout_rate
        if rate and uniform("no caption", *key) < rate:
            return ""
        text = self.texts[image]
        if self.varies_tags:
            text = vary_tags(
                text,
                *key,
                shuffle=options.shuffle_caption,
                keep=options.keep_tokens,
                dropout=options.caption_tag_dropout_rate,
            )
        if options.templates:
            drawn = int(uniform("template", *key) * len(options.templates))
            text = self._in_template(options.templates[drawn], text, image)
        return text

    @property
    def varies_tags(self) -> bool:
        """Whether tags are moved or dropped: then the captions cannot be listed."""
        return self.options.shuffle_caption or self.options.caption_tag_dropout_rate > 0

    def all_captions(self) -> list[str] | None:
        """Every caption that can come up, without doubles, or ``None`` where tags vary."""
        if self.varies_tags:
            return None
        found = dict.fromkeys(
            self._in_template(template, text, image)
            for image, text in enumerate(self.texts)
            for template in self.options.templates or [PROMPT]
        )
        if self.options.caption_dropout_rate:
            found[""] = None
        return list(found)

    def _in_template(self, template: str, text: str, image: int) -> str:
        if template == PROMPT:
            return text
        return fill(template, prompt=text, words=self.words[image], name=self.names[image])


def _one_line(text: str) -> str:
    return " ".join(text.split())
