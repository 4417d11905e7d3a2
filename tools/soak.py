"""`make soak`: many edits on one server, from two clients at once, some of them interrupted.

The edits are the example workflows for the demo model with few steps, in random order and with a
few seeds. Each client has one of its own queued at any time, and gets its pictures by websocket.
The same workflow with the same seed must give the same picture whoever asks, after whatever ran
before; no client may hear of the other's edits; and the memory must stop growing. Ends with 1 if
not.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil
from PIL import Image

from ..batch.server import pictures_in
from ..benchmarks.machine import write_page
from .host import Server, Workflow
from .setup import ROOT
from .workflows import EXAMPLE_PICTURE, demos, twin_of

TABLE = ROOT / "benchmarks" / "results" / "soak.md"

LEFT_OUT = ("27_", "28_", "29_", "69_", "70_")
"""Sheets that compare dozens of edits, and ComfyUI's own training of LoRAs."""

FEW: dict[str, int] = {"steps": 6, "inner_steps": 1, "maps": 2}
SEEDS = 4
INTERRUPTED = 0.1
"""How many edits are cancelled, at a random time after they started; some have ended by then."""
LATEST = 1.5
"""Seconds after its start at which an edit is cancelled at the latest."""
SLOWEST = 600.0
"""Seconds after which an edit that has not ended never will."""
GROWTH = 1.1
"""By how much the second half of a run may add to the memory. The first half fills caches."""


class SoakError(Exception):
    """What must not happen, in one sentence."""


@dataclass
class Soak:
    """What is known of one run.

    Attributes:
        pictures: the hash of each workflow's pictures, by its name and seed.
        marks: how many edits to stop at for a row of the table.
        rows: edits, seconds since the start, and the server's memory in MiB.
    """

    server: Server
    edits: int
    marks: tuple[int, ...]
    pictures: dict[tuple[str, int], str] = field(default_factory=dict)
    rows: list[tuple[int, float, float]] = field(default_factory=list)
    ended: int = 0
    interrupted: int = 0
    repeated: int = 0

    def __post_init__(self) -> None:
        self.workflows = {
            example.stem: json.loads(twin_of(example).read_text())
            for example in demos()
            if not example.name.startswith(LEFT_OUT)
        }
        self.random = random.Random(0)
        self.jobs = self._jobs()
        self.process = psutil.Process(self.server.process.pid)
        self.started = time.monotonic()

    def _jobs(self) -> Iterator[tuple[str, int]]:
        """Workflows and seeds: each workflow as often as the others, in random order."""
        names: list[str] = []
        for _ in range(self.edits):
            if not names:
                names = self.random.sample([*self.workflows], len(self.workflows))
            yield names.pop(), self.random.randrange(SEEDS)

    def workflow(self, name: str, seed: int) -> Workflow:
        """A workflow with few steps and this seed."""
        workflow: Workflow = json.loads(json.dumps(self.workflows[name]))
        settings = FEW | {"seed": seed, "noise_seed": seed}
        for node in workflow.values():
            given = {key: settings[key] for key in node["inputs"] if key in settings}
            node["inputs"] |= {k: v for k, v in given.items() if type(node["inputs"][k]) is int}
        return workflow

    def count(self, name: str, seed: int, found: str | None) -> None:
        """Book an edit that has ended, with its pictures' hash, or None if it was interrupted."""
        self.ended += 1
        if found is None:
            self.interrupted += 1
        elif (name, seed) not in self.pictures:
            self.pictures[name, seed] = found
        elif self.pictures[name, seed] == found:
            self.repeated += 1
        else:
            raise SoakError(f"{name} with seed {seed} has given two different pictures.")
        if self.ended in self.marks:
            memory = self.process.memory_info().rss / 2**20
            self.rows.append((self.ended, time.monotonic() - self.started, memory))
            print("{:5} edits, {:5.0f} s, {:5.0f} MiB".format(*self.rows[-1]), flush=True)

    async def run(self) -> None:
        """Two clients until all edits have ended."""
        await asyncio.gather(self.client(), self.client())

    async def client(self) -> None:
        """One client, with one edit at a time in the queue."""
        me, mine = uuid.uuid4().hex, set[str]()
        async with (
            aiohttp.ClientSession(self.server.url) as session,
            session.ws_connect("/ws", params={"clientId": me}) as socket,
        ):
            for name, seed in self.jobs:
                workflow = self.workflow(name, seed)
                body = {"prompt": workflow, "client_id": me}
                async with session.post("/prompt", json=body) as answer:
                    said = await answer.json()
                if answer.status != 200:
                    raise SoakError(f"{name} was refused: {said}")
                mine.add(said["prompt_id"])
                cancel = self.random.random() < INTERRUPTED
                delay = self.random.random() * LATEST if cancel else None
                async with asyncio.timeout(SLOWEST):
                    outputs = await edit(session, socket, mine, said["prompt_id"], delay)
                self.count(name, seed, await hashed(session, workflow, outputs))


async def edit(
    session: aiohttp.ClientSession,
    socket: aiohttp.ClientWebSocketResponse,
    mine: set[str],
    prompt_id: str,
    delay: float | None,
) -> dict[str, dict[str, Any]] | None:
    """Wait for an edit's end; its nodes' outputs, or None if it was cancelled in time.

    Args:
        mine: every prompt id of this client.
        prompt_id: the edit's.
        delay: how many seconds after its start to cancel it.
    """
    outputs: dict[str, dict[str, Any]] = {}
    cancelling: asyncio.Task[None] | None = None
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # a preview
        kind, data = message.json()["type"], message.json()["data"]
        if data.get("prompt_id", prompt_id) not in mine:
            raise SoakError(f"A client has heard {kind!r} of another's edit.")
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "execution_start" and delay is not None:
            cancelling = asyncio.create_task(cancel_after(session, prompt_id, delay))
        if kind == "executed":
            outputs[data["node"]] = data["output"] or {}
        if kind == "execution_error":
            raise SoakError(f"{data['node_type']}: {data['exception_message']}")
        if kind in ("execution_success", "execution_interrupted"):
            if cancelling:
                await cancelling
            if kind == "execution_interrupted" and delay is None:
                raise SoakError("An edit was interrupted that nobody has cancelled.")
            return outputs if kind == "execution_success" else None
    raise SoakError("ComfyUI hung up.")


async def cancel_after(session: aiohttp.ClientSession, prompt_id: str, delay: float) -> None:
    """Press Cancel, which does nothing if the edit does not run at this moment."""
    await asyncio.sleep(delay)
    async with session.post("/interrupt", json={"prompt_id": prompt_id}) as answer:
        answer.raise_for_status()


async def hashed(
    session: aiohttp.ClientSession,
    workflow: Workflow,
    outputs: dict[str, dict[str, Any]] | None,
) -> str | None:
    """A hash of the pixels of all pictures that an edit shows or saves; None if it has none."""
    if outputs is None:
        return None
    hash_ = hashlib.sha256()
    # ComfyUI tells of a loaded picture only if it has not kept it from an edit before.
    nodes = [node for node in sorted(outputs) if workflow[node]["class_type"] != EXAMPLE_PICTURE]
    pictures = [one for node in nodes for one in pictures_in(outputs[node])]
    for picture in pictures:
        async with session.get("/view?" + urllib.parse.urlencode(picture)) as answer:
            answer.raise_for_status()
            hash_.update(Image.open(io.BytesIO(await answer.read())).convert("RGBA").tobytes())
    if not pictures:
        raise SoakError("An edit has given no picture.")
    return hash_.hexdigest()


def table(soak: Soak) -> str:
    """The figures as Markdown."""
    lines = ["| edits | minutes | s per edit since the row above | server's memory (RSS, MiB) |"]
    lines += ["|---|---|---|---|"]
    before = (0, 0.0)
    for edits, seconds, memory in soak.rows:
        rate = (seconds - before[1]) / (edits - before[0])
        lines.append(f"| {edits} | {seconds / 60:.1f} | {rate:.2f} | {memory:.0f} |")
        before = edits, seconds
    return "\n".join(lines)


def main(edits: int) -> None:
    """Run, and write the table."""
    marks = tuple(sorted({min(n, edits) for n in (1, 100, 500, edits // 2, 1000, edits)}))
    with Server() as server:
        soak = Soak(server, edits, marks)
        asyncio.run(soak.run())
    memory = {ended: mib for ended, _, mib in soak.rows}
    write_page(
        TABLE,
        f"# Soak\n\n{edits} edits on one server: {len(soak.workflows)} example workflows with "
        f"{FEW['steps']} steps, {SEEDS} seeds, in random order, from two clients at once. "
        f"{soak.interrupted} were interrupted. {soak.repeated} repeated a workflow and seed, and "
        f"each gave the same picture as before.\n\n"
        f"{table(soak)}",
    )
    print(f"{TABLE}\n{table(soak)}")
    if not soak.interrupted:
        raise SoakError("Nothing was interrupted: run more edits.")
    if memory[edits] > GROWTH * memory[edits // 2]:
        raise SoakError(
            f"The server's memory grew from {memory[edits // 2]:.0f} to {memory[edits]:.0f} MiB "
            f"in the second half."
        )


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if sys.argv[1:] else 1000)
    except SoakError as error:
        sys.exit(str(error))
