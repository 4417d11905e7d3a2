"""`make fuzz`: random workflows on a real ComfyUI; what fails without a sentence of ours is kept.

make fuzz N=1000 SEED=0
make fuzz REPLAY=fuzz-output/some-case.json
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import re
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from .fuzz_files import PREFIX, Files
from .fuzz_graphs import OURS, Grammar, ancestors, links_of
from .host import ComfyUIError, Server, Workflow
from .setup import PACK, ROOT

OUTPUT = ROOT / "fuzz-output"
TIMEOUT = 120.0

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


def is_sentence(message: str, names: set[str]) -> bool:
    """Whether a message is one sentence with the display name of one of our nodes before it."""
    if not any(message.startswith(f"{name}: ") for name in names):
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
    chains = failures(log)
    chain = (
        next((one for one in chains if one[-1].text.startswith(message.splitlines()[0])), None)
        if message
        else None
    )
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


class Fuzzer:
    """Judges workflows on one server."""

    def __init__(self, server: Server) -> None:
        """Put files into the server's input folder, and have it save paths to spoil."""
        self.server = server
        self.info = server.object_info()
        self.names = {
            node["display_name"] for name, node in self.info.items() if name.startswith(OURS)
        }
        self.files = Files(server.base / "input")
        for name, workflow in base_workflows().items():
            server.run(workflow)
            saved = sorted((server.base / "output" / "fuzz").glob(f"{name}_*.safetensors"))
            self.files.add(name, saved[-1].read_bytes())
        self.server.object_info()  # lists the files

    def grammar(self, seed: int) -> Grammar:
        """The maker of workflows for this server."""
        return Grammar(self.info, seed, self.files.names(), self.files.pictures)

    def verdict(self, workflow: Workflow, timeout: float = TIMEOUT) -> Verdict:
        """Run a workflow and judge what came of it."""
        workflow = copy.deepcopy(workflow)
        self.files.write(json.dumps(workflow))
        position = len(self.server.log)
        try:
            answer = self._post(workflow)
            if "prompt_id" not in answer:
                return self._judge_refusal(answer, self.server.log[position:])
            entry = self._wait(answer["prompt_id"], timeout)
        except ComfyUIError as error:
            return Verdict(RAW, "the server died", str(error), self.server.log[-3000:])
        except TimeoutError as error:
            return Verdict(RAW, "the server hung", str(error), self.server.log[-3000:])
        log = self.server.log[position:]
        error = next(
            (d for kind, d in entry["status"]["messages"] if kind == "execution_error"), None
        )
        refused = self._judge_refusal(answer, log)
        if refused.kind == RAW:
            return refused
        if error is not None:
            verdict = judge_failure(error, log, self.names)
            if verdict.kind == RAW and self._twin_fails(workflow, verdict, timeout):
                verdict.kind = CORE
        else:
            verdict = self._judge_outputs(workflow, entry["outputs"], timeout)
        if verdict.kind in (OK, CORE):
            said = error["exception_message"].strip() if error else None
            verdict = self._judge_log(log, said) or verdict
        return verdict if verdict.kind != OK or refused.kind == OK else refused

    def _post(self, workflow: Workflow) -> dict[str, Any]:
        body = json.dumps({"prompt": workflow, "client_id": self.server.client}).encode()
        try:
            return dict(json.loads(self.server._request("/prompt", body, "application/json")))
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                return dict(json.loads(text))
            except ValueError:
                return {"error": {"message": f"HTTP {error.code}: {text[:300]}"}}
        except OSError as error:
            raise ComfyUIError(f"No answer: {error}.") from None

    def _wait(self, prompt_id: str, timeout: float) -> dict[str, Any]:
        """The history entry of a workflow."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.server.process.poll() is not None:
                raise ComfyUIError(f"ComfyUI ended with code {self.server.process.returncode}.")
            try:
                history = json.loads(self.server._request(f"/history/{prompt_id}"))
            except urllib.error.HTTPError as error:
                # Such as a lone surrogate in a value, which ComfyUI cannot send back.
                text = f"ComfyUI cannot tell what came of it: HTTP {error.code}"
                return {"status": {"messages": []}, "outputs": {}, "text": text}
            except OSError as error:
                raise ComfyUIError(f"No answer: {error}.") from None
            if prompt_id in history:
                return dict(history[prompt_id])
            time.sleep(0.01)
        self.server.interrupt()
        raise TimeoutError(f"The workflow did not end in {timeout:.0f} s.")

    def _judge_refusal(self, answer: dict[str, Any], log: str) -> Verdict:
        """The verdict on what ComfyUI says before it runs anything."""
        verdict = Verdict(OK)
        for number, node in (answer.get("node_errors") or {}).items():
            for error in node["errors"]:
                told = error.get("details", "").partition(" - ")[2]
                trace = error.get("extra_info", {}).get("traceback")
                own = node["class_type"].startswith(OURS)
                if error["type"] == "custom_validation_failed" and own:
                    kind = SENTENCE if is_sentence(told, self.names) else RAW
                    one = Verdict(kind, f"validation of {node['class_type']}", told, "", number)
                elif trace:
                    failure = Failure(
                        error["extra_info"]["exception_type"], error["details"], frames_of(trace)
                    )
                    one = judge_chain([failure], error["details"], "validation", number, self.names)
                else:
                    one = Verdict(REFUSED, error["type"], error["details"], "", number)
                verdict = max(verdict, one, key=lambda v: KINDS.index(v.kind))
        if verdict.kind == OK and "error" in answer:
            verdict = Verdict(REFUSED, "refused", str(answer["error"].get("message")))
        return self._judge_log(log, None) or verdict if "prompt_id" not in answer else verdict

    def _judge_log(self, log: str, said: str | None) -> Verdict | None:
        """The verdict on what the log alone tells of, apart from the failure that says `said`."""
        for chain in failures(log):
            known = said is not None and said and chain[-1].text.startswith(said.splitlines()[0])
            if any(failure.own for failure in chain) and not known:
                text = chain[-1].text
                verdict = judge_chain(chain, text, "the log", "", self.names)
                if verdict.kind == RAW:
                    return verdict
        return None

    def _judge_outputs(
        self, workflow: Workflow, outputs: dict[str, Any], timeout: float
    ) -> Verdict:
        """Whether what nodes of ours have made is finite and as large as it should be."""
        found = measure(self.server.base, workflow, outputs)
        broken = [link for link, made in found.items() if not made.finite]
        for link in broken:
            above = ancestors(workflow, link[0])
            kind = workflow[link[0]]["class_type"]
            earlier = any(other[0] in above and other[0] != link[0] for other in broken)
            if not kind.startswith(OURS) or earlier or strange_numbers(workflow, above):
                continue
            said = f"output {link[1]} of {kind} is not finite"
            verdict = Verdict(RAW, f"not finite: {kind} {link[1]}", said, "", link[0])
            if self._twin_fails(workflow, verdict, timeout):
                verdict.kind = CORE
            return verdict
        for link, made in found.items():
            kind = workflow[link[0]]["class_type"]
            source = source_latent(workflow, link[0]) if kind.startswith(OURS) else None
            if source not in found or kind in NO_PICTURES:
                continue
            scale = 1 if self.info[kind]["output"][link[1]] == "LATENT" else 8
            wanted = (scale * found[source].width, scale * found[source].height)
            if (made.width, made.height) != wanted:
                said = f"output {link[1]} of {kind} is {made.width} x {made.height}, not {wanted}"
                return Verdict(RAW, f"size: {kind} {link[1]}", said, "", link[0])
        return Verdict(OK)

    def _twin_fails(self, workflow: Workflow, verdict: Verdict, timeout: float) -> bool:
        """Whether a KSampler with the same model, prompts and latent fails in the same way."""
        twin = twin_of(workflow, verdict.node, self.info)
        if twin is None:
            return False
        position = len(self.server.log)
        answer = self._post(twin)
        if "prompt_id" not in answer:
            return False
        entry = self._wait(answer["prompt_id"], timeout)
        if "not finite" in verdict.key:
            made = measure(self.server.base, twin, entry["outputs"])
            return any(not one.finite for one in made.values())
        for chain in failures(self.server.log[position:]):
            if verdict.trace.startswith(f"{chain[0].type}: {chain[0].text[:40]}"):
                return True
        return False

    def shrink(self, workflow: Workflow, key: str, tries: int = 60) -> Workflow:
        """A smaller workflow with the same failure: without inputs and nodes it does not need."""
        changed = True
        while changed:
            changed = False
            for smaller in smaller_workflows(workflow, self.info):
                tries -= 1
                if tries < 0:
                    return workflow
                if self.verdict(smaller).key == key:
                    workflow, changed = smaller, True
                    break
        return workflow


# Pictures of another size than the latent's: a chart, or two pictures side by side.
NO_PICTURES = {OURS + "EditReport", OURS + "DemoModel"}


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
            finite = bool(torch.isfinite(samples.float()).all())
            if workflow[link[0]]["class_type"] == "VAEEncode":
                encoded[through(workflow, links_of(workflow[link[0]])["pixels"])] = finite
            else:
                found[link] = Made(samples.shape[-1], samples.shape[-2], finite)
    for link, finite in encoded.items():
        if link in found:
            found[link].finite &= finite
    return found


def through(workflow: Workflow, link: tuple[str, int]) -> tuple[str, int]:
    """Where a picture comes from, before it was turned from a mask into an image."""
    node = workflow[link[0]]
    return links_of(node)["mask"] if node["class_type"] == "MaskToImage" else link


def source_latent(workflow: Workflow, number: str) -> tuple[str, int] | None:
    """The latent that a node's results have the size of, or None if the graph does not tell."""
    links = links_of(workflow.get(number, {"inputs": {}}))
    if "latent_image" in links:
        return links["latent_image"]
    return source_latent(workflow, links["path"][0]) if "path" in links else None


def strange_numbers(workflow: Workflow, numbers: set[str]) -> bool:
    """Whether NaN, infinity or something huge goes into a stock node of these."""
    for number in numbers:
        node = workflow[number]
        for value in node["inputs"].values():
            text = str(value).lower()
            huge = isinstance(value, float | int) and not abs(value) < 1e6 and "seed" not in text
            if (huge or re.search(r"nan|inf|1e30", text)) and not node["class_type"].startswith(
                OURS
            ):
                return True
    return False


def twin_of(workflow: Workflow, number: str, info: dict[str, Any]) -> Workflow | None:
    """A workflow that samples with what a node of ours was given, and with no node of ours."""
    node = workflow.get(number, {"inputs": {}})
    links, inputs = links_of(node), node["inputs"]
    latent = source_latent(workflow, number)
    if "model" not in links:
        return None

    def of_path(name: str) -> tuple[str, int] | None:
        made = links_of(workflow[links["path"][0]]) if "path" in links else {}
        return made.get(name)

    positive = links.get("positive") or links.get("target") or of_path("positive")
    if positive is None:
        return None
    negative = links.get("negative") or links.get("source") or of_path("negative") or positive
    twin = {
        one: workflow[one]
        for link in (links["model"], positive, negative, latent)
        if link is not None
        for one in ancestors(workflow, link[0])
    }
    if latent is None:
        size = {"width": 128, "height": 128, "batch_size": 1}
        twin["empty"] = {"class_type": "EmptyLatentImage", "inputs": size}
        latent = ("empty", 0)
    schedulers = info["KSampler"]["input"]["required"]["scheduler"][0]
    spacing = inputs.get("spacing")
    cfg = inputs.get("cfg", 1.0)
    twin["twin"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": list(links["model"]),
            "positive": list(positive),
            "negative": list(negative),
            "latent_image": list(latent),
            "seed": 0,
            "steps": inputs["steps"] if isinstance(inputs.get("steps"), int) else 3,
            "cfg": cfg if isinstance(cfg, int | float) and 0 <= cfg <= 100 else 1.0,
            "sampler_name": "euler",
            "scheduler": spacing if spacing in schedulers else "normal",
            "denoise": 1.0,
        },
    }
    twin["kept"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["twin", 0], "filename_prefix": "fuzz/twin"},
    }
    return twin


def smaller_workflows(workflow: Workflow, info: dict[str, Any]) -> Iterator[Workflow]:
    """Workflows with one thing less, the largest losses first."""
    needed = {
        n for n, node in workflow.items() if info.get(node["class_type"], {}).get("output_node")
    }
    for number in sorted(needed) if len(needed) > 1 else ():
        yield reachable({n: node for n, node in workflow.items() if n != number}, info)
    for number, node in workflow.items():
        types = info.get(node["class_type"], {}).get("output", [])
        for name, link in links_of(node).items():
            source = workflow.get(link[0])
            made = info.get(source["class_type"], {}).get("output", []) if source else []
            # Past a node: what it is made from, if that is of the same type.
            for further in links_of(source).values() if source else ():
                given = info.get(workflow.get(further[0], {}).get("class_type"), {}).get("output")
                if given and link[1] < len(made) and given[further[1]] == made[link[1]]:
                    yield reachable(changed(workflow, number, name, list(further)), info)
        optional = info.get(node["class_type"], {}).get("input", {}).get("optional", {})
        for name in node["inputs"]:
            if name in optional:
                yield reachable(changed(workflow, number, name, None), info)
        del types
    for number, node in workflow.items():
        required = info.get(node["class_type"], {}).get("input", {}).get("required", {})
        for name, value in node["inputs"].items():
            spec = required.get(name, ())
            default = spec[1].get("default") if len(spec) > 1 else None
            costly = name in ("steps", "inner_steps", "maps", "frames", "width", "height")
            if (
                default is not None
                and value != default
                and not costly
                and not isinstance(value, list)
            ):
                yield changed(workflow, number, name, default)


def changed(workflow: Workflow, number: str, name: str, value: Any) -> Workflow:
    """A workflow with one input changed, or left out where `value` is None."""
    inputs = {key: old for key, old in workflow[number]["inputs"].items() if key != name}
    inputs |= {} if value is None else {name: value}
    return workflow | {number: workflow[number] | {"inputs": inputs}}


def reachable(workflow: Workflow, info: dict[str, Any]) -> Workflow:
    """A workflow without the nodes that no output needs."""
    kept: set[str] = set()
    for number, node in workflow.items():
        if info.get(node["class_type"], {}).get("output_node"):
            kept |= ancestors(workflow, number)
    return {number: node for number, node in workflow.items() if number in kept}


def base_workflows() -> dict[str, Workflow]:
    """Workflows that save right paths: a plain one, and one with everything that a path can have."""
    inputs: dict[str, dict[str, Any]] = {
        "DiffusionPath_DemoModel": {},
        "LoadImage": {"image": f"{PREFIX}128x128.png"},
        "VAEEncode": {"pixels": ["LoadImage", 0], "vae": ["DiffusionPath_DemoModel", 2]},
        "CLIPTextEncode": {"clip": ["DiffusionPath_DemoModel", 1], "text": "a red apple"},
        "DiffusionPath_DDIMInversion": {
            "model": ["DiffusionPath_DemoModel", 0],
            "positive": ["CLIPTextEncode", 0],
            "latent_image": ["VAEEncode", 0],
            "steps": 3,
            "spacing": "leading",
            "strength": 1.0,
            "fixed_point_iterations": 0,
            "cfg": 1.0,
        },
        "DiffusionPath_NegativePromptInversion": {
            "path": ["DiffusionPath_DDIMInversion", 0],
            "proximal": "l0",
            "quantile": 0.7,
            "reconstruction": 0.6,
        },
    }
    graph = {kind: {"class_type": kind, "inputs": given} for kind, given in inputs.items()}

    def saved(kind: str, name: str) -> dict[str, Any]:
        given = {"path": [kind, 0], "filename_prefix": f"fuzz/{name}"}
        return {"saved": {"class_type": "DiffusionPath_SavePath", "inputs": given}}

    return {
        "plain": graph | saved("DiffusionPath_DDIMInversion", "plain"),
        "full": graph | saved("DiffusionPath_NegativePromptInversion", "full"),
    }


def keep(fuzzer: Fuzzer, verdict: Verdict, workflow: Workflow, seed: int, number: int) -> Path:
    """Write a failure into the output folder, with all that it takes to see it again."""
    OUTPUT.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.]+", "-", verdict.key).strip("-")[:80]
    file = OUTPUT / f"{name}.json"
    case = {
        "key": verdict.key,
        "message": verdict.message,
        "trace": verdict.trace,
        "seed": seed,
        "execution": number,
        "workflow": workflow,
        "files": fuzzer.files.used(json.dumps(workflow)),
    }
    file.write_text(json.dumps(case, indent=1))
    return file


@dataclass
class Tally:
    """What came of all executions so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    core: Counter[str] = field(default_factory=Counter)
    raw: dict[str, tuple[int, Verdict, Workflow]] = field(default_factory=dict)

    def add(self, number: int, verdict: Verdict, workflow: Workflow) -> bool:
        """Count a verdict; whether it is a new raw error."""
        self.kinds[verdict.kind] += 1
        if verdict.kind == CORE:
            self.core[verdict.key] += 1
        new = verdict.kind == RAW and verdict.key not in self.raw
        if new:
            self.raw[verdict.key] = (number, verdict, workflow)
        return new

    def table(self) -> str:
        """The verdicts with how often each came."""
        return "\n".join(f"{self.kinds[kind]:7} {kind}" for kind in KINDS)


def fuzz(executions: int, seed: int, shrink: bool = True) -> Tally:
    """Run workflows one after another, with a new server for one that died."""
    tally = Tally()
    grammar: Grammar | None = None
    number = 0
    started = time.monotonic()
    while number < executions:
        with Server() as server:
            fuzzer = Fuzzer(server)
            grammar = grammar or fuzzer.grammar(seed)
            while number < executions:
                workflow = grammar.workflow()
                number += 1
                verdict = fuzzer.verdict(workflow)
                if tally.add(number, verdict, workflow):
                    file = keep(fuzzer, verdict, workflow, seed, number)
                    print(f"{number}: {verdict.key}\n    {verdict.message[:300]}\n    {file}")
                if verdict.key in ("the server died", "the server hung"):
                    break
                if tally.raw.get(verdict.key, (0,))[0] == number and shrink:
                    keep(fuzzer, verdict, fuzzer.shrink(workflow, verdict.key), seed, number)
                if number % 50 == 0:
                    counts = ", ".join(f"{tally.kinds[kind]} {kind}" for kind in KINDS)
                    rate = number / (time.monotonic() - started)
                    print(f"{number} executions, {rate:.1f} a second: {counts}", flush=True)
    return tally


def replay(file: Path) -> Verdict:
    """Run a kept failure again."""
    case = json.loads(file.read_text())
    with Server() as server:
        fuzzer = Fuzzer(server)
        for name, data in case["files"].items():
            (server.base / "input" / name).write_bytes(base64.b64decode(data))
        return fuzzer.verdict(case["workflow"])


def main() -> None:
    """Fuzz, or replay; ends with 1 if there is an error of ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executions", type=int, nargs="?", default=500)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--replay", type=Path, help="a file of fuzz-output")
    arguments = parser.parse_args()
    if arguments.replay:
        verdict = replay(arguments.replay)
        print(f"{verdict.kind}: {verdict.message}\n{verdict.trace}")
        sys.exit(verdict.kind == RAW)
    tally = fuzz(arguments.executions, arguments.seed)
    print(tally.table())
    for key, times in tally.core.most_common():
        print(f"  core: {times} x {key}")
    for number, verdict, _ in tally.raw.values():
        print(f"  ours: first at {number}: {verdict.key}: {verdict.message[:200]}")
    sys.exit(bool(tally.raw))


if __name__ == "__main__":
    main()
