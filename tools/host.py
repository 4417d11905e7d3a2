"""A real ComfyUI for tests, benchmarks and the demo: imported here, or started as a server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .setup import PACK, ROOT, find_comfyui, is_comfyui

Workflow = dict[str, Any]


class ComfyUIError(RuntimeError):
    """ComfyUI refused or failed a workflow, or did not start."""


def has_accelerator() -> bool:
    """Whether ComfyUI can run on something faster than the CPU."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def comfyui_path() -> Path:
    """Where ComfyUI is, or an error that says how to get it."""
    path = find_comfyui()
    if not is_comfyui(path):
        raise ComfyUIError(f"There is no ComfyUI at {path}: run `make setup`, or set COMFYUI_PATH.")
    return path


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


class Server:
    """A ComfyUI of its own with this pack and nothing else, in a temporary folder, on a free port.

    with Server() as server:
        history = server.run(workflow)  # in API format
        pictures = server.images(history)
    """

    def __init__(self, *arguments: str, start_timeout: float = 180) -> None:
        """Keep further command-line arguments for ComfyUI; starting it is for `with`."""
        self.arguments = arguments
        self.start_timeout = start_timeout
        self.client = uuid.uuid4().hex

    def __enter__(self) -> Server:
        """Start ComfyUI and wait until it answers."""
        self._folder = tempfile.TemporaryDirectory(prefix="comfyui-")
        self.base = Path(self._folder.name)
        for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        self.port = free_port()
        self._log: IO[bytes] = (self.base / "log.txt").open("wb")
        command = [sys.executable, "main.py", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes", *self.arguments]
        if not has_accelerator() and "--cpu" not in command:
            command.append("--cpu")
        self.process = subprocess.Popen(
            command,
            cwd=comfyui_path(),
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": ""},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop ComfyUI and remove its folder."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """The address of the server and of its front end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything ComfyUI has printed so far."""
        return (self.base / "log.txt").read_text(errors="replace")

    def upload(self, picture: Path, name: str | None = None) -> str:
        """Put a picture into ComfyUI's input folder; returns the name LoadImage knows it by."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
            f'filename="{name or picture.name}"\r\nContent-Type: image/png\r\n\r\n'
        )
        body = head.encode() + picture.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        return str(json.loads(answer)["name"])

    def object_info(self) -> dict[str, Any]:
        """What ComfyUI says of every node it knows."""
        return self._get("/object_info")

    def queue(self, workflow: Workflow) -> str:
        """Queue a workflow in API format; returns its prompt id."""
        body = json.dumps({"prompt": workflow, "client_id": self.client}).encode()
        try:
            answer = self._request("/prompt", body, "application/json")
        except urllib.error.HTTPError as error:
            raise ComfyUIError(refusal(json.loads(error.read()))) from None
        return str(json.loads(answer)["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a queued workflow once it has run; its error, if it had one."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self._get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                raise_failure(entry)
                return dict(entry)
            self._raise_if_dead()
            time.sleep(0.05)
        raise ComfyUIError(f"The workflow did not end in {timeout:.0f} s.\n{self._log_tail()}")

    def run(self, workflow: Workflow, timeout: float = 600) -> dict[str, Any]:
        """Queue a workflow and wait for its history entry."""
        return self.wait(self.queue(workflow), timeout)

    def images(self, history: dict[str, Any]) -> dict[str, list[bytes]]:
        """The pictures a run has saved or previewed, as files' bytes, by node id."""
        return {
            node: [
                self._request("/view?" + urllib.parse.urlencode(image))
                for image in pictures_in(output)
            ]
            for node, output in history["outputs"].items()
            if pictures_in(output)
        }

    def interrupt(self) -> None:
        """Press Cancel."""
        self._request("/interrupt", b"")

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
        import aiohttp

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

    def _get(self, path: str) -> dict[str, Any]:
        return dict(json.loads(self._request(path)))

    def _request(self, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.url + path, body, headers)
        with _opener.open(request, timeout=60) as answer:
            return bytes(answer.read())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._raise_if_dead()
            try:
                self._request("/system_stats")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise ComfyUIError(f"No answer after {self.start_timeout:.0f} s.\n{self._log_tail()}")

    def _raise_if_dead(self) -> None:
        if (code := self.process.poll()) is not None:
            raise ComfyUIError(f"ComfyUI ended with exit code {code}.\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "Its last words:\n" + "\n".join(self.log.splitlines()[-30:])


def pictures_in(output: dict[str, Any]) -> list[dict[str, str]]:
    """The pictures in a node's output; of Compare Images the former ones, then the latter."""
    return [one for kind in ("images", "a_images", "b_images") for one in output.get(kind) or ()]


# The server is on this machine: no proxy that the environment may name.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(answer: dict[str, Any]) -> str:
    """Why ComfyUI did not queue a workflow, in its own words, node by node."""
    reasons = [answer["error"]["message"]]
    for node, errors in answer.get("node_errors", {}).items():
        for error in errors["errors"]:
            reasons.append(f"node {node} ({errors['class_type']}): {error['message']}")
            reasons[-1] += f": {error['details']}" if error.get("details") else ""
    return "\n".join(reasons)


def raise_failure(entry: dict[str, Any]) -> None:
    """Raise the error that a history entry tells of, if it does."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise ComfyUIError(
                f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}"
            )
        if kind == "execution_interrupted":
            raise ComfyUIError(f"interrupted in node {data['node_id']} ({data['node_type']})")
