"""A real ComfyUI with this pack, as a process of its own."""

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
from pathlib import Path
from typing import IO, Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-DiffusionPath"

Workflow = dict[str, Any]

START = """
import os, runpy, shutil, sys, threading

def end_with_parent(folder):
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)

threading.Thread(target=end_with_parent, args=(sys.argv.pop(1),), daemon=True).start()
sys.path.insert(0, os.getcwd())
runpy.run_path("main.py", run_name="__main__")
"""
"""ComfyUI's own start, in a process that ends when its parent does, however that ends: the pipe
that is its standard input closes then. Its folder, the first argument, goes with it."""


class ComfyUIError(RuntimeError):
    """ComfyUI refused or failed a workflow, or did not start."""


class ComfyUITimeout(ComfyUIError, TimeoutError):
    """A workflow did not end in time."""


def find_comfyui() -> Path:
    """COMFYUI_PATH, else the ComfyUI that this pack is installed in, that of `make setup`, or the
    folder that the command was started in.

    Raises:
        ComfyUIError: there is none; the message says what to do.
    """
    given = os.environ.get("COMFYUI_PATH")
    if given:
        places = [Path(given).expanduser().resolve()]
    else:
        inside = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
        places = [*inside, ROOT / ".comfyui" / "ComfyUI", Path.cwd()]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy").is_dir():
            return place
    where = f"COMFYUI_PATH={given} is not a ComfyUI" if given else "ComfyUI was not found"
    raise ComfyUIError(
        f"{where}: set COMFYUI_PATH to the folder that holds its main.py and comfy/."
    )


class Server:
    """A ComfyUI of its own with this pack and nothing else, in a temporary folder, on a free port.

    with Server("--cpu") as server:
        history = server.run(workflow)  # in API format
        pictures = server.images(history)
    """

    def __init__(
        self,
        *arguments: str,
        start_timeout: float = 180,
        models: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Keep what starting it needs; that is for `with`.

        Args:
            arguments: more of ComfyUI's command-line arguments.
            start_timeout: in seconds.
            models: the folder to take models from; else it has none.
            environment: variables to set for it beside this process's own.
        """
        self.arguments = arguments
        self.start_timeout = start_timeout
        self.models = models
        self.environment = environment or {}
        self.client = uuid.uuid4().hex

    def __enter__(self) -> Server:
        """Start ComfyUI and wait until it answers."""
        comfyui = find_comfyui()
        self._folder = tempfile.TemporaryDirectory(prefix="comfyui-", ignore_cleanup_errors=True)
        self.base = Path(self._folder.name)
        for name in ("custom_nodes", "input", "output", "temp", "user"):
            (self.base / name).mkdir()
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        if self.models is None:
            (self.base / "models" / "checkpoints").mkdir(parents=True)
        else:
            (self.base / "models").symlink_to(self.models, target_is_directory=True)
        self.port = free_port()
        self._log: IO[bytes] = (self.base / "log.txt").open("wb")
        command = [sys.executable, "-c", START, str(self.base), "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes", *self.arguments]
        self.process = subprocess.Popen(
            command,
            cwd=comfyui,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": ""} | self.environment,
            stdin=subprocess.PIPE,
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
        if self.process.stdin:
            self.process.stdin.close()
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
        try:
            entry = asyncio.run(asyncio.wait_for(self._entry(prompt_id), timeout))
        except asyncio.TimeoutError:
            raise ComfyUITimeout(
                f"The workflow did not end in {timeout:.0f} s.\n{self._log_tail()}"
            ) from None
        except aiohttp.ClientError:
            entry = None
        if entry is None:
            self.ended()
            self._raise_if_dead()
            raise ConnectionError("ComfyUI hung up")
        raise_failure(entry)
        return entry

    async def _entry(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry once it is there: ComfyUI tells every client that its queue changes.

        It is not asked again and again, as that takes its time from the edit. None if it hangs up.
        """
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.ws_connect("/ws") as messages,
        ):
            async for message in messages:  # the first one comes at once
                if message.type is aiohttp.WSMsgType.TEXT:  # previews are not
                    entry = self._get(f"/history/{prompt_id}").get(prompt_id)
                    if entry is not None:
                        return dict(entry)
        return None

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

    def forget(self, prompt_id: str) -> None:
        """Take a run out of the history."""
        body = json.dumps({"delete": [prompt_id]}).encode()
        self._request("/history", body, "application/json")

    def ended(self, patience: float = 2) -> bool:
        """Whether ComfyUI has ended, or does within `patience` seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

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
