"""Files that the fuzzer puts into ComfyUI's input folder: pictures, and path files that are wrong.

A wrong path file is a right one, saved by the server itself, with one change. Its name says which.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

SIZES = [(128, 128), (16, 512), (512, 16), (64, 64), (8, 8), (100, 75), (136, 72), (1, 1)]
PREFIX = "fuzz-"
SUFFIX = ".safetensors"

TENSORS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda x: None,
    "flat": lambda x: x.flatten(),
    "scalar": lambda x: x.flatten()[0],
    "deeper": lambda x: x[None],
    "none": lambda x: x[:0],
    "one": lambda x: x[:1],
    "shorter": lambda x: x[:-1],
    "longer": lambda x: torch.cat([x, x]),
    "swapped": lambda x: x.transpose(0, -1),
    "narrow": lambda x: x[..., :-1],
    "wide": lambda x: torch.cat([x, x], -1),
    "int64": lambda x: x.long(),
    "bool": lambda x: x > 0,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex64": lambda x: x.to(torch.complex64),
    "nan": lambda x: torch.full_like(x, math.nan),
    "inf": lambda x: torch.full_like(x, math.inf),
    "one-nan": lambda x: x.flatten().index_fill(0, torch.tensor(0), math.nan).reshape(x.shape),
    "negative": lambda x: -x - 1,
    "zero": lambda x: x * 0,
    "reversed": lambda x: x.flip(0),
}

VALUES: dict[str, str | None] = {
    "missing": None,
    "empty": "",
    "null": "null",
    "zero": "0",
    "minus": "-1",
    "huge": "1e400",
    "nan": "NaN",
    "true": "true",
    "text": '"x"',
    "list": "[]",
    "list-of-numbers": "[1, 2]",
    "list-of-lists": "[[]]",
    "list-of-text": '["x"]',
    "object": "{}",
    "strange-object": '{"x": {"y": [null]}}',
    "broken": "{",
    "deep": "[" * 100_000,
    "deep-object": '{"a":' * 100_000,
    "digits": "9" * 5_000,
    "surrogate": '"\\ud800"',
}

OPTIONS: dict[str, list[Any]] = {
    "area": [None, "x", [1], [4, 4, 0, 0], [0, 0, 0, 0], [-1, 4, 0, 0], ["percentage", 2, 1, 0, 0]],
    "strength": ["x", None, math.nan, [], -1e30],
    "mask": [3, "x", [[1]]],
    "mask_strength": ["x", None],
    "set_area_to_bounds": ["x", 1],
    "start_percent": ["x", None, math.nan],
    "end_percent": ["x", -3],
    "timestep_start": ["x"],
    "pooled_output": ["x", None, 3],
    "embedding": [3, None, []],
    "hooks": [1, {}],
    "control": [{}, "x"],
    "gligen": ["x"],
    "model_conds": [{}, 3],
    "uuid": [[]],
    "attention_mask": ["x"],
    "guidance": ["x"],
    "": [3],
}

RAW = ["empty", "garbage", "cut-8", "cut-100", "cut-half", "cut-last", "long-header", "picture",
       "folder", "loop", "dangling", "outside"]  # fmt: skip


class Files:
    """What lies in the input folder of one server.

    Attributes:
        pictures: names of pictures with their (width, height).
        base: right path files, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Write pictures into `folder`."""
        self.folder = folder
        self.base: dict[str, bytes] = {}
        self.pictures: dict[str, tuple[int, int]] = {}
        for width, height in SIZES:
            self._picture(f"{PREFIX}{width}x{height}.png", "RGB", width, height)
        for mode in ("RGBA", "L", "I;16", "P", "CMYK"):
            kind = "jpg" if mode == "CMYK" else "png"
            self._picture(f"{PREFIX}{mode.replace(';', '')}.{kind}", mode, 128, 128)

    def _picture(self, name: str, mode: str, width: int, height: int) -> None:
        ramp = Image.linear_gradient("L").resize((width, height))
        ramp = ramp.convert("I").convert(mode) if mode == "I;16" else ramp.convert(mode)
        ramp.save(self.folder / name)
        self.pictures[name] = (width, height)

    def add(self, name: str, data: bytes) -> None:
        """Write a right path file, to make wrong ones from."""
        self.base[name] = data
        (self.folder / f"{PREFIX}{name}{SUFFIX}").write_bytes(data)

    def names(self) -> list[list[str]]:
        """Names for Load Path in groups: right ones, and by how they are wrong."""
        tensors: list[str] = []
        texts: list[str] = []
        options: list[str] = []
        for name, data in self.base.items():
            keys, metadata = unpack(data)
            tensors += [f"{name}-tensor-{key}-{kind}" for key in keys for kind in TENSORS]
            texts += [f"{name}-value-{key}-{kind}" for key in metadata for kind in VALUES]
            options += [
                f"{name}-option-{key}-{k}"
                for key, values in OPTIONS.items()
                for k in range(len(values))
            ]
        groups = [list(self.base), [f"raw-{kind}" for kind in RAW], tensors, texts, options]
        return [[f"{PREFIX}{name}{SUFFIX}" for name in group] for group in groups]

    def write(self, text: str) -> None:
        """Write the wrong files that a workflow, as text, names."""
        for name in re.findall(PREFIX + r"[^\"/]*?" + re.escape(SUFFIX), text):
            file = self.folder / name
            recipe = name.removeprefix(PREFIX).removesuffix(SUFFIX)
            if not file.is_symlink() and not file.exists() and "-" in recipe:
                self._write(file, recipe)

    def _write(self, file: Path, recipe: str) -> None:
        kind, what = recipe.split("-", 1)
        if kind == "raw":
            self._write_raw(file, what)
            return
        what, rest = what.split("-", 1)
        tensors, metadata = unpack(self.base[kind])
        if what == "tensor":
            key = max((key for key in tensors if rest.startswith(key + "-")), key=len)
            changed = TENSORS[rest.removeprefix(key + "-")](tensors.pop(key))
            tensors |= {} if changed is None else {key: changed.contiguous()}
        elif what == "value":
            key = max((key for key in metadata if rest.startswith(key + "-")), key=len)
            value = VALUES[rest.removeprefix(key + "-")]
            metadata = {k: v for k, v in metadata.items() if k != key}
            metadata |= {} if value is None else {key: value}
        else:
            key, k = rest.rsplit("-", 1)
            entries = json.loads(metadata["positive"])
            entries[0][key] = OPTIONS[key][int(k)]
            metadata["positive"] = json.dumps(entries)
            if key == "embedding":
                tensors.pop("positive.0.embedding", None)
        file.write_bytes(save({k: v.clone() for k, v in tensors.items()}, metadata))

    def _write_raw(self, file: Path, kind: str) -> None:
        data = next(iter(self.base.values()))
        if kind == "folder":
            file.mkdir()
        elif kind in ("loop", "dangling", "outside"):
            to = {"loop": file.name, "dangling": "nowhere" + SUFFIX, "outside": "/etc/hostname"}
            file.symlink_to(to[kind])
        else:
            picture = self.folder / next(iter(self.pictures))
            contents = {
                "empty": b"",
                "garbage": bytes(range(256)) * 9,
                "cut-8": data[:8],
                "cut-100": data[:100],
                "cut-half": data[: len(data) // 2],
                "cut-last": data[:-1],
                "long-header": b"\xff" * 8 + data[8:],
                "picture": picture.read_bytes(),
            }
            file.write_bytes(contents[kind])

    def used(self, text: str) -> dict[str, str]:
        """The path files that a workflow names, for keeping: base64 by name."""
        return {
            file.name: base64.b64encode(file.read_bytes()).decode()
            for file in sorted(self.folder.glob(f"{PREFIX}*{SUFFIX}"))
            if file.name in text and not file.is_symlink() and file.is_file()
        }

    def remove(self) -> None:
        """Take everything away again."""
        for file in self.folder.glob(f"{PREFIX}*"):
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink()


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors, metadata = load(data), header.get("__metadata__", {})  # in an order that varies
    return dict(sorted(tensors.items())), dict(sorted(metadata.items()))
