"""The real ComfyUI that other tests stand on: it starts, runs workflows and reports failures."""

from __future__ import annotations

import io
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from PIL import Image

from diffusion_path.batch.server import ComfyUITimeout
from diffusion_path.batch.workflow import load_workflow
from diffusion_path.tools.host import ComfyUIError, Server

GREY = 0x808080


def preview(color: int = GREY, **empty_image: int) -> dict:
    """A workflow of stock nodes only."""
    size = {"width": 64, "height": 32, "batch_size": 1, "color": color} | empty_image
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_a_workflow_goes_in_through_the_queue_and_a_picture_comes_out(server: Server):
    (picture,) = server.images(server.run(preview()))["2"]
    image = Image.open(io.BytesIO(picture))
    assert image.size == (64, 32)
    assert image.getpixel((0, 0)) == (128, 128, 128)


def test_an_uploaded_picture_can_be_loaded(server: Server, tmp_path: Path):
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "red.png")
    name = server.upload(tmp_path / "red.png")
    workflow = preview() | {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    (picture,) = server.images(server.run(workflow))["2"]
    assert Image.open(io.BytesIO(picture)).convert("RGB").getpixel((8, 8)) == (255, 0, 0)


def test_a_workflow_that_cannot_be_right_is_refused_with_the_node_and_the_reason(server: Server):
    with pytest.raises(ComfyUIError, match=r"node 1 \(EmptyImage\).*width"):
        server.queue(preview(width=-1))


def test_a_node_that_fails_is_named_with_its_message(server: Server):
    workflow = preview() | {
        "1": {
            "class_type": "ImageCrop",
            "inputs": {"image": ["3", 0], "width": 8, "height": 8, "x": 0, "y": 0},
        },
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["4", 0]}},
        "4": {"class_type": "LoadImageMask", "inputs": {"image": "missing", "channel": "red"}},
    }
    with pytest.raises(ComfyUIError, match=r"node 4 \(LoadImageMask\)"):
        server.run(workflow)


def test_messages_tell_how_a_run_proceeds(server: Server):
    kinds = [message["type"] for message in server.watch(preview(color=1))]
    assert "executing" in kinds
    assert kinds[-1] == "execution_success"


def test_who_waits_hears_of_the_end_and_does_not_ask_again_and_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    request = server._request

    def counted(path: str, *body: Any) -> bytes:
        asked.append(path)
        return request(path, *body)

    monkeypatch.setattr(server, "_request", counted)
    server.run(load_workflow("02"))
    assert len(asked) < 10


def test_who_waits_for_nothing_hears_of_it_in_time(server: Server):
    with pytest.raises(ComfyUITimeout, match=r"did not end in 1 s"):
        server.wait("0123456789", timeout=1)


def test_who_waits_hears_of_comfyuis_end():
    with Server("--cpu") as server:
        prompt_id = server.queue(load_workflow("02"))
        Timer(1, server.process.kill).start()
        with pytest.raises(ComfyUIError, match=r"ended with exit code -9"):
            server.wait(prompt_id)


def test_the_pack_is_loaded_without_a_warning(server: Server):
    assert "ComfyUI-DiffusionPath" in server.log
    assert "IMPORT FAILED" not in server.log
    assert "Error while calling comfy_entrypoint" not in server.log


def test_a_server_that_cannot_start_says_why():
    with (
        pytest.raises(ComfyUIError, match="unrecognized arguments: --no-such-option"),
        Server("--no-such-option"),
    ):
        pass


def test_in_process_the_module_nodes_is_the_one_of_comfyui(comfy: Path):
    import nodes

    assert Path(nodes.__file__) == comfy / "nodes.py"
    assert "KSampler" in nodes.NODE_CLASS_MAPPINGS
