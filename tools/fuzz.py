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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fuzz_files import PREFIX, Files
from .fuzz_graphs import OURS, PROMPTS, Grammar
from .fuzz_rewrites import ancestors, smaller_workflows, source_latent, strange_numbers, twin_of
from .fuzz_verdicts import (
    CORE,
    KINDS,
    NO_PICTURES,
    OK,
    RAW,
    REFUSED,
    SENTENCE,
    Failure,
    Verdict,
    failures,
    frames_of,
    is_sentence,
    judge_chain,
    judge_failure,
    measure,
)
from .host import ComfyUIError, Server, Workflow
from .setup import ROOT

OUTPUT = ROOT / "fuzz-output"
TIMEOUT = 120.0
DIED, HUNG = "the server died", "the server hung"


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
        try:
            return self._verdict(workflow, timeout)
        except ComfyUIError as error:
            return Verdict(RAW, DIED, str(error), self.server.log[-3000:])
        except TimeoutError as error:
            return Verdict(RAW, HUNG, str(error), self.server.log[-3000:])

    def _verdict(self, workflow: Workflow, timeout: float) -> Verdict:
        position = len(self.server.log)
        answer = self._post(workflow)
        refused = self._judge_refusal(answer)
        if "prompt_id" not in answer:
            return self._judge_log(self.server.log[position:], refused.message) or refused
        messages, outputs = self._wait(answer["prompt_id"], timeout)
        log = self.server.log[position:]
        error = next((data for kind, data in messages if kind == "execution_error"), None)
        if error is not None:
            verdict = judge_failure(error, log, self.names)
            said = error["exception_message"].strip()
        else:
            verdict = self._judge_outputs(workflow, outputs)
            said = ""
        if verdict.kind == RAW and self._twin_fails(workflow, verdict, timeout):
            verdict.kind = CORE
        if verdict.kind != RAW:
            verdict = self._judge_log(log, said) or verdict
        return max(refused, verdict, key=lambda one: KINDS.index(one.kind))

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

    def _wait(self, prompt_id: str, timeout: float) -> tuple[list[Any], dict[str, Any]]:
        """The messages and the outputs of a workflow that has run."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.server.process.poll() is not None:
                raise ComfyUIError(f"ComfyUI ended with code {self.server.process.returncode}.")
            try:
                entry = json.loads(self.server._request(f"/history/{prompt_id}")).get(prompt_id)
            except OSError as error:
                raise ComfyUIError(f"ComfyUI does not tell what came of it: {error}.") from None
            if entry is not None:
                return entry["status"]["messages"], entry["outputs"]
            time.sleep(0.01)
        self.server.interrupt()
        raise TimeoutError(f"The workflow did not end in {timeout:.0f} s.")

    def _judge_refusal(self, answer: dict[str, Any]) -> Verdict:
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
        return verdict

    def _judge_log(self, log: str, said: str) -> Verdict | None:
        """The verdict on an error of ours that only the log tells of: one that is not `said`."""
        for chain in failures(log):
            known = bool(said) and chain[-1].text.startswith(said.splitlines()[0])
            if any(failure.own for failure in chain) and not known:
                verdict = judge_chain(chain, chain[-1].text, "the log", "", self.names)
                if verdict.kind == RAW:
                    return verdict
        return None

    def _judge_outputs(self, workflow: Workflow, outputs: dict[str, Any]) -> Verdict:
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
            return Verdict(RAW, f"not finite: {kind} {link[1]}", said, "", link[0])
        for link, made in found.items():
            kind = workflow[link[0]]["class_type"]
            source = source_latent(workflow, link[0]) if kind.startswith(OURS) else None
            if source not in found or (kind, link[1]) in NO_PICTURES:
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
        _, outputs = self._wait(answer["prompt_id"], timeout)
        if "not finite" in verdict.key:
            made = measure(self.server.base, twin, outputs)
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


def base_workflows() -> dict[str, Workflow]:
    """Workflows that save right paths: a plain one, and others with all that a path can have."""
    inputs: dict[str, dict[str, Any]] = {
        "DiffusionPath_DemoModel": {},
        "LoadImage": {"image": f"{PREFIX}128x128.png"},
        "VAEEncode": {"pixels": ["LoadImage", 0], "vae": ["DiffusionPath_DemoModel", 2]},
        "CLIPTextEncode": {"clip": ["DiffusionPath_DemoModel", 1], "text": PROMPTS[0]},
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
        "DiffusionPath_DDPMInversion": {
            "model": ["DiffusionPath_DemoModel", 0],
            "positive": ["CLIPTextEncode", 0],
            "latent_image": ["VAEEncode", 0],
            "steps": 3,
            "cfg": 1.0,
            "seed": 0,
            "spacing": "leading",
            "solver": "ddpm",
        },
    }
    graph = {kind: {"class_type": kind, "inputs": given} for kind, given in inputs.items()}

    def saved(kind: str, name: str) -> dict[str, Any]:
        given = {"path": [kind, 0], "filename_prefix": f"fuzz/{name}"}
        return {"saved": {"class_type": "DiffusionPath_SavePath", "inputs": given}}

    return {
        "plain": graph | saved("DiffusionPath_DDIMInversion", "plain"),
        "full": graph | saved("DiffusionPath_NegativePromptInversion", "full"),
        "noise": graph | saved("DiffusionPath_DDPMInversion", "noise"),
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
                    print(
                        f"{number}: {verdict.key}\n    {verdict.message[:300]}\n    {file}",
                        flush=True,
                    )
                if verdict.key in (DIED, HUNG):
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
