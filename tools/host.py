"""A real ComfyUI for tests, benchmarks and the demo: imported here, or started as a server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ..batch import server
from ..batch.server import ComfyUIError, Workflow
from ..batch.server import find_comfyui as comfyui_path
from .setup import ROOT


def has_accelerator() -> bool:
    """Whether ComfyUI can run on something faster than the CPU."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def import_comfy() -> Path:
    """Make ComfyUI importable in this process, on the CPU where there is nothing better.

    This pack has a folder `nodes` and ComfyUI a module `nodes`, so the pack's own folder, which
    `python -m` and scripts put first on sys.path, is taken off it.
    """
    path = comfyui_path()
    here = Path.cwd() == ROOT
    sys.path[:] = [
        entry for entry in sys.path if not (entry == "" and here) and Path(entry).resolve() != ROOT
    ]
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    import comfy.options  # parses no command line unless told to
    from comfy.cli_args import args

    assert not comfy.options.args_parsing
    args.cpu = not has_accelerator()
    args.disable_dynamic_vram = True  # it is prepared by main.py, which does not run here
    return path


class Server(server.Server):
    """A ComfyUI of its own with this pack and no models, on the CPU where there is nothing better.

    with Server() as server:
        history = server.run(workflow)  # in API format
        pictures = server.images(history)
    """

    def __init__(self, *arguments: str, start_timeout: float = 180) -> None:
        """Keep further command-line arguments for ComfyUI; starting it is for `with`."""
        if not has_accelerator() and "--cpu" not in arguments:
            arguments = (*arguments, "--cpu")
        super().__init__(*arguments, start_timeout=start_timeout)

    def __enter__(self) -> Server:
        """Start ComfyUI and wait until it answers."""
        super().__enter__()
        return self

    def watch(self, workflow: Workflow) -> Iterator[dict[str, Any]]:
        """Queue a workflow and yield the messages a browser would get, until it has ended."""
        with asyncio.Runner() as runner, self._messages(runner) as messages:
            prompt_id = self.queue(workflow)
            ends = ("execution_success", "execution_error", "execution_interrupted")
            for message in messages:
                yield message
                if message["type"] in ends and message["data"].get("prompt_id") == prompt_id:
                    return
        raise ComfyUIError(f"ComfyUI hung up.\n{self._log_tail()}")

    @contextmanager
    def _messages(self, runner: asyncio.Runner) -> Generator[Iterator[dict[str, Any]]]:
        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession()
            return session, await session.ws_connect(f"{self.url}/ws?clientId={self.client}")

        def receive() -> Iterator[dict[str, Any]]:
            while (message := runner.run(socket.receive())).type in readable:
                if message.type is aiohttp.WSMsgType.TEXT:  # the others are preview pictures
                    yield message.json()

        readable = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
        session, socket = runner.run(connect())
        try:
            yield receive()
        finally:
            runner.run(session.close())
