"""What came of one execution: of the exception, of the log, and of the files that it has left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from .fuzz_graphs import OURS
from .fuzz_rewrites import links_of, through
from .host import Workflow
from .setup import PACK, ROOT

OK = "ok"
SENTENCE = "our sentence"
REFUSED = "ComfyUI's refusal"
CORE = "core's fault"
RAW = "OUR RAW ERROR"
KINDS = (OK, SENTENCE, REFUSED, CORE, RAW)


@dataclass
class Verdict:
    """What came of one execution.

    Attributes:
        kind: one of KINDS.
        key: what is the same about two failures with one cause.
        message: what the user would see.
        trace: where it came from.
        node: the number of the node that failed, if one did.
    """

    kind: str
    key: str = ""
    message: str = ""
    trace: str = ""
    node: str = ""


@dataclass
class Failure:
    """One exception of a chain in the log: its type and text, and (file, function, code) frames."""

    type: str
    text: str
    frames: list[tuple[str, str, str]]

    @property
    def own(self) -> list[tuple[str, str, str]]:
        """The frames in our files, the innermost last."""
        return [frame for frame in self.frames if is_ours(frame[0])]


def is_ours(file: str) -> bool:
    """Whether a file of a traceback is this pack's."""
    for start in (f"custom_nodes/{PACK}/", f"{ROOT}/"):
        if start in file:
            return not re.match(r"\.comfyui|\.venv", file.split(start, 1)[1])
    return False


def failures(log: str) -> list[list[Failure]]:
    """The chains of exceptions in a log; in each, what was raised first comes first."""
    chains: list[list[Failure]] = []
    linked = False
    for part in log.split("Traceback (most recent call last):\n")[1:]:
        frames = []
        lines = part.splitlines()
        while lines and (lines[0].startswith("  ") or not lines[0]):
            line = lines.pop(0)
            if found := re.match(r'  File "(.*)", line \d+, in (.*)', line):
                code = lines[0].strip() if lines and lines[0].startswith("    ") else ""
                frames.append((found[1], found[2], code))
        kind, _, text = "\n".join(lines).split("\n\n")[0].partition(":")
        if not (linked and chains):
            chains.append([])
        chains[-1].append(Failure(kind.strip(), text.strip(), frames))
        linked = any(
            line.startswith(("The above exception was", "During handling of the above"))
            for line in lines
        )
    return chains


# What Python and its libraries say; of a refused input ComfyUI keeps the words, not the traceback.
FOREIGN = re.compile(
    r"embedded null|codec can't|\[Errno|has no attribute|cannot convert|could not convert|"
    r"Symlink loop|values to unpack|out of (range|bounds)|unsupported operand|object is not|"
    r"Expecting value|invalid literal"
)


def is_sentence(message: str, names: set[str]) -> bool:
    """Whether a message is one sentence with the display name of one of our nodes before it."""
    if not any(message.startswith(f"{name}: ") for name in names) or FOREIGN.search(message):
        return False
    unquoted = re.sub(r"(?<!\w)(['\"]).*?\1(?!\w)", "''", message, flags=re.DOTALL)
    ends = re.findall(r"[.!?](?:\s|$)", unquoted)
    return message.endswith(".") and "\n" not in message and len(ends) == 1


def is_meant(chain: list[Failure], message: str) -> bool:
    """Whether we raised what a sentence says, rather than put our name before another's words."""
    said = message.partition(": ")[2].removesuffix(".")
    first = next((one for one in chain if one.text == said), chain[-1])
    if not first.frames:
        return False
    file, _, code = first.frames[-1]
    return is_ours(file) and code.startswith("raise")


def judge_failure(data: dict[str, Any], log: str, names: set[str]) -> Verdict:
    """The verdict on a history's "execution_error", before any twin is asked."""
    message = data["exception_message"].strip()
    first = message.split("\n")[0]
    chain = next((one for one in failures(log) if one[-1].text.startswith(first)), None)
    chain = chain or [Failure(data["exception_type"], message, frames_of(data["traceback"]))]
    return judge_chain(chain, message, data["node_type"], data["node_id"], names)


def frames_of(traceback: list[str]) -> list[tuple[str, str, str]]:
    """The frames of a traceback as the history has it."""
    found = (re.match(r'\s*File "(.*)", line \d+, in (.*)\n\s*(.*)', entry) for entry in traceback)
    return [(one[1], one[2], one[3]) for one in found if one]


def judge_chain(
    chain: list[Failure], message: str, kind: str, number: str, names: set[str]
) -> Verdict:
    """The verdict on an exception in a node of this kind."""
    own = [frame for failure in chain for frame in failure.own]
    trace = "\n".join(
        f"{one.type}: {one.text[:500]}\n"
        + "\n".join(f"  {f} {n}: {c}" for f, n, c in one.frames[-12:])
        for one in chain
    )
    if is_sentence(message, names) and is_meant(chain, message):
        return Verdict(SENTENCE, message, message, trace, number)
    deepest = next((one.own[-1] for one in chain if one.own), None)
    place = f"{short(deepest[0])}:{deepest[1]}" if deepest else kind
    verdict = CORE if not kind.startswith(OURS) and not own else RAW
    return Verdict(verdict, f"{chain[0].type} at {place}", f"{kind}: {message}", trace, number)


def short(file: str) -> str:
    """A file of a traceback, from the pack's folder on."""
    return file.split(f"{PACK}/")[-1].removeprefix(f"{ROOT}/")


# Pictures of another size than the source's: with words on them, side by side, a chart.
NO_PICTURES = {
    (OURS + "EditReport", 1),
    (OURS + "AttentionMaps", 0),
    (OURS + "NullTextInversion", 2),
}


@dataclass
class Made:
    """What a file tells of a latent or a picture that a workflow has made."""

    width: int
    height: int
    finite: bool = True


def measure(base: Path, workflow: Workflow, outputs: dict[str, Any]) -> dict[tuple, Made]:
    """Of each link that a probe has kept: size and finiteness."""
    found: dict[tuple, Made] = {}
    encoded: dict[tuple, bool] = {}
    for number, output in outputs.items():
        node = workflow.get(number, {"class_type": "", "inputs": {}})
        for image in output.get("images", ()) if node["class_type"] == "PreviewImage" else ():
            link = through(workflow, links_of(node)["images"])
            with Image.open(
                base / image["type"] / image["subfolder"] / image["filename"]
            ) as picture:
                found[link] = Made(*picture.size)
        for latent in output.get("latents", ()):
            link = links_of(node)["samples"]
            file = base / latent["type"] / latent["subfolder"] / latent["filename"]
            samples = load_file(file)["latent_tensor"]
            real = torch.view_as_real(samples) if samples.is_complex() else samples.float()
            finite = bool(torch.isfinite(real).all())
            if workflow[link[0]]["class_type"] == "VAEEncode":
                encoded[through(workflow, links_of(workflow[link[0]])["pixels"])] = finite
            else:
                found[link] = Made(samples.shape[-1], samples.shape[-2], finite)
    for link, finite in encoded.items():
        if link in found:
            found[link].finite &= finite
    return found
