"""Take stock of a folder of images.

Any folder will do. No file makes this fail: a broken one is skipped with its reason, an unusual
one is taken with a note, and both are listed so that a person sees what will be trained on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth_core.data.crops import owner_of, read_crop
from dreambooth_core.data.decode import Undecodable, probe, refusal_of
from dreambooth_core.data.inventory import ImageFile, Inventory, Skipped, hash_bytes, printable
from dreambooth_core.disk.reading import read_bytes, regular
from dreambooth_core.errors import UserError

CAPTION_SUFFIXES = (".txt", ".caption")
LARGEST_FILE = 256 << 20
"""Bytes. No photograph is larger, and reading such a file would fill the memory."""
MOST_ENTRIES = 20_000
"""Files and folders in one folder: each is opened, and that many take an hour."""
LISTING_SECONDS = 60.0
"""How long the names of one folder may take to come, from a network drive for one."""
MASK_FOLDERS = ("masks", "mask")
_MASK_ENDS = (".mask", "-masklabel")
_MAYBE_MASK = "-mask"
"""Ends a mask's name where an image of the rest of the name is there: else it is an image."""
_SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}
_REPEATS_FOLDER = re.compile(r"(\d{1,4})_(.*)")


def take_stock(
    folder: Path | str,
    *,
    subfolders: bool = True,
    exclude: Iterable[Path | str] = (),
    allow_empty: bool = False,
    crops: bool = True,
) -> Inventory:
    """Look at every file of a folder.

    Args:
        folder: Any folder. Folders in it are looked into as well, one level deep, where
            ``subfolders`` is on; one named like ``10_sks dog`` always is, and its images repeat
            10 times. Hidden files and folders, and ``masks``, are never images.
        exclude: Folders to leave out, such as the class images'.
        allow_empty: A folder without images, or none at all, is no error.
        crops: Read the crops' files; else only their places are told.

    Raises:
        UserError: The folder is missing, is a file, cannot be read, or has no image to take; or
            a crop's file is damaged: the whole image is not what was asked for.
    """
    root = Path(os.path.expanduser(folder))
    if not os.path.isdir(root):
        if allow_empty and not os.path.lexists(root):
            return Inventory(root)
        there = os.path.exists(root)
        what = "this is a file, not a folder" if there else "there is no such folder"
        raise UserError(what, where=root, do="Name the folder that holds the images.")
    if is_of_the_system(root):
        raise UserError("this folder is the system's own, and holds no images", where=root)
    stock = _Stock(root, [_resolved(path) for path in exclude])
    try:
        stock.walk(subfolders)
    except OSError as error:
        raise UserError(f"the folder cannot be read ({error.strerror})", where=root) from error
    inventory = stock.look(crops=crops)
    if not inventory.taken and not allow_empty:
        raise _nothing(inventory)
    return inventory


def look_at(path: Path, *, name: str | None = None, repeats: int = 1) -> ImageFile | Skipped:
    """One file: an image, or the reason why it is none. Never raises."""
    name = path.name if name is None else name
    if (reason := refusal_of(path.suffix)) is not None:
        return Skipped(name, reason)
    try:
        size = regular(path)
        if size > LARGEST_FILE:
            return Skipped(name, f"larger than {LARGEST_FILE >> 20} MiB")
        # What the system makes up as it is read says that it is empty, and may have no end.
        content = read_bytes(path, LARGEST_FILE) if size else b""
    except UserError as error:
        return Skipped(name, error.what)
    try:
        found = probe(content, path.suffix)
    except Undecodable as reason_not:
        return Skipped(name, str(reason_not))
    return ImageFile(path, name, content_hash=hash_bytes(content), repeats=repeats, **vars(found))


@dataclass
class _Folder:
    """One level of the tree: files by name, and what goes with them."""

    path: Path
    prefix: str
    repeats: int
    images: list[Path] = field(default_factory=list)
    captions: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    crops: dict[str, Path] = field(default_factory=dict)


class _Stock:
    """The walk through a folder, in a fixed order, and the look at each file."""

    def __init__(self, root: Path, exclude: list[Path]) -> None:
        self.root, self.exclude = root, exclude
        self.folders: list[_Folder] = []
        self.skipped: list[Skipped] = []
        self.warnings: list[str] = []

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def walk(self, subfolders: bool) -> None:
        """Sort the entries of the root, and of the folders in it, into kinds."""
        home = _resolved(self.root)
        for folder in self._sort_entries(self.root, "", 1):
            match = _REPEATS_FOLDER.fullmatch(folder.name)
            name = folder.name + "/"
            target = _resolved(folder)
            if is_of_the_system(target) or target in (home, *home.parents):
                self._skip(name, "a link out of this folder")
            elif target in self.exclude:
                self._skip(name, "holds the class images")
            elif not subfolders and not match:
                self._skip(name, "a folder, and subfolders are off")
            else:
                repeats = max(int(match.group(1)), 1) if match else 1
                if match:
                    self.warnings.append(
                        f"{printable(name)} its name repeats its images {repeats} times"
                    )
                try:
                    deeper = self._sort_entries(folder, name, repeats)
                except OSError as error:
                    self._skip(name, f"cannot be read ({error.strerror})")
                    continue
                for inner in deeper:
                    self._skip(f"{name}{inner.name}/", "more than one level deep")

    def _sort_entries(self, path: Path, prefix: str, repeats: int) -> list[Path]:
        """Sort the files of one folder into kinds; returns its subfolders."""
        here = _Folder(path, prefix, repeats)
        subfolders = []
        candidates: list[Path] = []
        entries = sorted(_entries(path), key=lambda entry: (_plain(entry.name), entry.name))
        for entry in entries:
            plain = _plain(entry.name)
            if entry.is_dir():
                if plain in MASK_FOLDERS:
                    self._sort_masks(entry, here)
                elif plain.startswith(".") or plain in _SYSTEM_NAMES:
                    self._skip(f"{prefix}{entry.name}/", "a hidden folder")
                else:
                    subfolders.append(entry)
            elif plain.startswith(".") or plain in _SYSTEM_NAMES:
                self._skip(prefix + entry.name, "a hidden or system file")
            elif not entry.is_file():
                self._skip(prefix + entry.name, "a broken link or not a plain file")
            elif entry.suffix.lower() in CAPTION_SUFFIXES:
                here.captions[_plain(entry.name)] = entry
            elif (bare := owner_of(entry.name)) is not None:
                here.crops[_plain(bare)] = entry
            elif (owner := _mask_owner(entry)) is not None:
                here.masks[owner] = entry
            else:
                candidates.append(entry)
        names = {_plain(name) for entry in candidates for name in (entry.stem, entry.name)}
        for entry in candidates:
            stem = _plain(entry.stem)
            masked = stem.removesuffix(_MAYBE_MASK)
            if masked != stem and masked in names:
                here.masks.setdefault(masked, entry)
            else:
                here.images.append(entry)
        self.folders.append(here)
        return subfolders

    def _sort_masks(self, folder: Path, owner: _Folder) -> None:
        try:
            for entry in sorted(_entries(folder)):
                if entry.is_file() and not entry.name.startswith("."):
                    key = _mask_owner(entry) or _plain(entry.stem)
                    owner.masks.setdefault(key, entry)
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            self._skip(f"{owner.prefix}{folder.name}/", why)

    def look(self, *, crops: bool) -> Inventory:
        """Open every candidate and match captions, masks and crops to images."""
        taken: list[ImageFile] = []
        for folder in self.folders:
            used: set[Path] = set()
            for path in folder.images:
                found = look_at(path, name=folder.prefix + path.name, repeats=folder.repeats)
                if isinstance(found, ImageFile):
                    found = self._with_sidecars(found, folder, used, crops=crops)
                    taken.append(found)
                else:
                    self.skipped.append(found)
            self._report_unused(folder, used)
        skipped = sorted(self.skipped, key=lambda item: _plain(item.name))
        return Inventory(self.root, self._note_duplicates(taken), skipped, self.warnings)

    def _with_sidecars(
        self, image: ImageFile, folder: _Folder, used: set[Path], *, crops: bool
    ) -> ImageFile:
        stem, whole = _plain(image.path.stem), _plain(image.path.name)
        beside = (base + suffix for base in (stem, whole) for suffix in CAPTION_SUFFIXES)
        caption = next((folder.captions[name] for name in beside if name in folder.captions), None)
        mask = folder.masks.get(stem) or folder.masks.get(whole)
        crop_file = folder.crops.get(whole) or folder.crops.get(stem)
        used.update(path for path in (caption, mask, crop_file) if path is not None)
        notes, mask_hash = list(image.notes), ""
        if mask is not None:
            seen = look_at(mask)
            if isinstance(seen, Skipped):
                notes.append(f"its mask {printable(mask.name)} is not used: {seen.reason}")
                self.warnings.append(f"{printable(image.name)}: {notes[-1]}")
                mask = None
            else:
                mask_hash = seen.content_hash
                shape, own = seen.width / seen.height, image.width / image.height
                if abs(shape / own - 1) > 0.02:
                    notes.append(f"its mask has another shape ({seen.width} × {seen.height})")
        return dataclasses.replace(
            image,
            caption=caption,
            mask=mask,
            mask_hash=mask_hash,
            notes=tuple(notes),
            crop=read_crop(crop_file) if crops and crop_file is not None else None,
            crop_file=crop_file,
        )

    def _report_unused(self, folder: _Folder, used: set[Path]) -> None:
        kinds = {"text": folder.captions, "a crop": folder.crops, "a mask": folder.masks}
        for what, files in kinds.items():
            for path in files.values():
                if path not in used:
                    inside = path.relative_to(folder.path).as_posix()
                    self._skip(folder.prefix + inside, f"{what} without an image of its name")

    def _note_duplicates(self, taken: list[ImageFile]) -> list[ImageFile]:
        first: dict[str, ImageFile] = {}
        result = []
        for image in taken:
            other = first.setdefault(image.pixels_hash, image)
            if other is not image:
                note = f"the same image as {printable(other.name)}"
                self.warnings.append(f"{printable(image.name)} is {note}")
                image = dataclasses.replace(image, notes=(*image.notes, note))
            result.append(image)
        return result


def _nothing(inventory: Inventory) -> UserError:
    if not inventory.skipped:
        do = "Put some images into it."
        return UserError("the folder is empty", where=inventory.folder, do=do)
    shown = [f"{printable(item.name)} ({item.reason})" for item in inventory.skipped[:5]]
    more = len(inventory.skipped) - len(shown)
    rest = f" and {more} more" if more else ""
    return UserError(
        "no image that can be used",
        where=inventory.folder,
        do=f"Skipped: {', '.join(shown)}{rest}.",
    )


def _mask_owner(path: Path) -> str | None:
    """The name of the image that ``dog.mask.png`` or ``dog-masklabel.png`` belongs to."""
    stem = _plain(path.stem)
    for end in _MASK_ENDS:
        if stem.endswith(end) and stem != end:
            return stem[: -len(end)]
    return None


def _plain(name: str) -> str:
    """A name for comparing: macOS writes ``é`` as two characters, Windows ignores case."""
    return unicodedata.normalize("NFC", name).casefold()


def _resolved(path: Path | str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))


def is_of_the_system(folder: Path) -> bool:
    """Whether a folder is one that Linux or macOS make up: processes, devices."""
    if os.name != "posix":
        return False
    parts = _resolved(folder).parts
    return parts[1:2] in (("proc",), ("sys",), ("dev",)) and parts[1:3] != ("dev", "shm")


def _entries(folder: Path) -> list[Path]:
    """What is in a folder. Raises ``UserError`` where that has no end, ``OSError``."""
    end = time.monotonic() + LISTING_SECONDS
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            found.append(Path(entry.path))
            if len(found) > MOST_ENTRIES:
                what = f"more than {MOST_ENTRIES:,} files are in this folder"
                raise UserError(what, where=folder, do="Take the best of them.")
            if time.monotonic() > end:
                raise UserError("this folder takes too long to list", where=folder)
    return found
