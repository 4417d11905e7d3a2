"""Files in a local folder or behind any URL that fsspec knows."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock

LOCK = ".lock"


def is_url(location: str) -> bool:
    """Whether it is an address for fsspec, and not a local path."""
    return "://" in location and not location.startswith("file://")


def local(location: str) -> Path:
    """The local path that a location names."""
    return Path(location.removeprefix("file://")).expanduser()


def joined(folder: str, name: str) -> str:
    """A name inside a folder; an absolute path or an address stays as it is."""
    if is_url(name) or local(name).is_absolute() or name.startswith("file://"):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(local(folder) / name)


def parent(location: str) -> str:
    """The folder that a file is in."""
    return location.rpartition("/")[0] if is_url(location) else str(local(location).parent)


def absolute(location: str) -> str:
    """A location that means the same in another folder."""
    return location if is_url(location) else str(local(location).absolute())


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(url)
    return found


def read(location: str) -> bytes:
    """The bytes of a file.

    Raises:
        OSError, ValueError, ImportError: in a sentence, why it cannot be read.
    """
    if is_url(location):
        files, path = filesystem(location)
        return bytes(files.cat_file(path))
    file = local(location)
    if not file.exists():
        raise FileNotFoundError(f"there is no file {shown(location)}")
    if not file.is_file():  # a pipe or a device would never end
        raise ValueError(f"{shown(location)} is not a file")
    return file.read_bytes()


def shown(text: str, most: int = 200) -> str:
    """A text from outside as a message may show it: on one line, and not too long."""
    said = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return f"{said[:most]}..." if len(said) > most or len(text) > 4 * most else said


def reason(error: BaseException) -> str:
    """What an error says, on one line; its kind if it says nothing."""
    return shown(str(error), 500) or type(error).__name__


class Folder:
    """A folder for results, on this machine's file system or behind an address."""

    def __init__(self, location: str) -> None:
        """Name it; nothing is made yet."""
        self.location = absolute(location).rstrip("/") or "/"
        self.path = None if is_url(location) else local(self.location)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make it where it is missing, and keep another run out of it where it is a local folder.

        What an interrupted write has left is removed.

        Raises:
            OSError: another run holds it, or it cannot be made.
        """
        if self.path is None:
            files, path = filesystem(self.location)
            files.makedirs(path, exist_ok=True)
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK, blocking=False)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except filelock.Timeout:
                raise FileExistsError(
                    f"another run writes into {shown(self.location)}; wait until it has ended, or "
                    "choose another folder"
                ) from None
            except NotImplementedError:  # some network file systems know no locks
                pass
            for leftover in self.path.glob(".*.part"):
                leftover.unlink(missing_ok=True)
            yield

    def at(self, name: str) -> str:
        """Where a file in it is."""
        return joined(self.location, name)

    def sizes(self) -> dict[str, int]:
        """The bytes of each file in it, by name, from one listing."""
        if self.path is not None:
            with os.scandir(self.path) as entries:
                return {one.name: one.stat().st_size for one in entries if one.is_file()}
        files, path = filesystem(self.location)
        files.invalidate_cache()
        return {
            one["name"].rsplit("/", 1)[-1]: int(one["size"] or 0)
            for one in files.ls(path, detail=True)
            if one["type"] == "file"
        }

    def has(self, name: str) -> bool:
        """Whether a file is in it, as far as can be seen from here."""
        if self.path is not None:
            return (self.path / name).is_file()
        files, path = filesystem(self.at(name))
        return bool(files.exists(path))

    def read(self, name: str) -> bytes:
        """The bytes of a file in it."""
        return read(self.at(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file that appears under its name only when all of it is on disk."""
        if self.path is None:
            files, path = filesystem(self.at(name))
            files.pipe_file(path, data)  # an object appears whole
            return
        unfinished = self.path / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path / name)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_folder(self.path)

    def remove(self, name: str) -> None:
        """Remove a file in it."""
        if self.path is not None:
            (self.path / name).unlink(missing_ok=True)
        else:
            files, path = filesystem(self.at(name))
            files.rm_file(path)


def sync_folder(path: Path) -> None:
    """See to it that a folder's new names survive a loss of power, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
