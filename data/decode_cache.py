"""Decoded images in a file that is mapped into memory (--cache DIR), shared by runs and by the processes of a run.

DIR/<state of the image files>/ holds sizes.npy, and for stored images of H x W pixels <H>x<W>.u8 with (N, 3, H, W)
bytes and <H>x<W>.done with one byte for every PART images. A part is marked as done after its pixels are on the disk:
after any interruption the marked parts can be trusted, and the next run decodes the rest.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from data.images import Images, reason
from utils.errors import UserError
from utils.files import create_allocated, replaced_atomically, typed_path, write_text_atomically
from utils.names import shown

PART = 1024  # images


class DecodeCache:
    """The cached sizes and pixels of some images. Files that were written again, at any length, get another folder."""

    def __init__(self, root: Path, images: Images):
        self.images, self.root, self.folder = images, root, typed_path(root) / images.state()
        with self._errors_named():
            self.folder.mkdir(parents=True, exist_ok=True)

    def sizes(self) -> NDArray:
        """(N, 2) heights and widths of the images, read from their files once."""
        path = self.folder / "sizes.npy"
        try:
            known: NDArray = np.load(path)
        except Exception:  # absent, truncated, empty or changed: numpy raises many kinds
            known = np.zeros((0, 2))
        if getattr(known, "shape", None) != (len(self.images), 2) or known.dtype.kind != "i" or (known <= 0).any():
            known = self.images.sizes()
            # Other processes read the old file or the whole new one.
            with self._locked(), replaced_atomically(path) as part, part.open("wb") as file:
                np.save(file, known)
        return known

    def pixels(self, shape: tuple[int, int], fill: Callable[[Tensor, range], None]) -> Tensor:
        """(N, 3, *shape) uint8; `fill` writes the rows of ranges of images that are not in the cache yet."""
        self.name, self.shape = f"{shape[0]}x{shape[1]}", (len(self.images), 3, *shape)
        with self._errors_named():
            complete = self._complete()
        if not complete:
            with self._locked():  # while another run fills the cache: wait, and find it filled
                self._fill(fill)
        return torch.from_numpy(self._pixels("c"))  # "c": changes of these pixels do not reach the file

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """What the system refuses, as in the cache of another user, is a UserError."""
        try:
            yield
        except OSError as e:
            where = f" ({shown(e.filename)})" if e.filename else ""
            raise UserError(f"--cache {self.root}: {reason(e)}{where}; name a folder that can be written to") from e

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder; errors of what is done meanwhile, such as reading a shard, are left alone."""
        with contextlib.ExitStack() as held:
            with self._errors_named():
                held.enter_context(FileLock(self.folder / "lock"))
            yield

    def _fill(self, fill: Callable[[Tensor, range], None]) -> None:
        with self._errors_named():
            if not self._sound():
                self._reserve()
            pixels, done = self._pixels("r+"), self._done("r+")
        for part in np.flatnonzero(done == 0).tolist():
            fill(torch.from_numpy(pixels), range(part * PART, min((part + 1) * PART, len(pixels))))
            pixels.flush()
            done[part] = 1
            done.flush()

    def _reserve(self) -> None:
        """Create both files at full length: a full disk is an error here, and not a crash in the middle of an epoch."""
        self._note_older()
        try:
            for path, size in self._lengths().items():
                path.unlink(missing_ok=True)  # first: the disk may not have room for both
                create_allocated(path, size)
        except UserError as e:
            for path in self._lengths():
                path.unlink(missing_ok=True)
            raise UserError(f"--cache: {e}; or name another folder, or remove --cache") from e

    def _lengths(self) -> dict[Path, int]:
        pixels, done = (self.folder / f"{self.name}.{ending}" for ending in ("u8", "done"))
        return {pixels: int(np.prod(self.shape)), done: -(-len(self.images) // PART)}

    def _sound(self) -> bool:
        """Whether both files have their full length."""
        return all(path.is_file() and path.stat().st_size == size for path, size in self._lengths().items())

    def _complete(self) -> bool:
        return self._sound() and bool(self._done("r").all())

    def _pixels(self, mode: str) -> np.memmap:
        pixels: np.memmap = np.memmap(self.folder / f"{self.name}.u8", np.uint8, mode, shape=self.shape)  # type: ignore[call-overload]  # a literal
        return pixels

    def _done(self, mode: str) -> np.memmap:
        done: np.memmap = np.memmap(self.folder / f"{self.name}.done", np.uint8, mode)  # type: ignore[call-overload]  # a literal
        return done

    def _note_older(self) -> None:
        """Print a note about caches of an earlier state of the same image folder: no run reads them again."""
        about = {"images": str(getattr(self.images, "root", ""))}
        for other in self.folder.parent.glob("*/about.json"):
            with contextlib.suppress(OSError, ValueError):  # a damaged one is of no use either
                if other.parent != self.folder and json.loads(other.read_text()) == about:
                    names = shown(other.parent), shown(about["images"])
                    print("  note: {} holds {} as it was before it changed; remove it".format(*names), flush=True)
        write_text_atomically(self.folder / "about.json", json.dumps(about))
