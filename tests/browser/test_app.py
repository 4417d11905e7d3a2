"""The first template as an app, from the address that `make serve` prints."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server
from diffusion_path.tools.serve import APP, FIRST
from diffusion_path.tools.workflows import EXAMPLES

SCRIPT = Path(__file__).parent / "app.mjs"


def test_the_app_edits_another_picture_after_another_choice(server: Server):
    OUTPUT.mkdir(exist_ok=True)
    address = APP[APP.index("/?") :]
    command = ["node", str(SCRIPT), server.url, address, str(OUTPUT)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["labels"][:4] == [
        "Example picture",
        "Your own picture",
        "What it shows now",
        "What it shall show",
    ]
    assert seen["nodes"] == len(json.loads((EXAMPLES / f"{FIRST}.json").read_text())["nodes"])
    grounds = []
    for source in seen["pictures"]:
        with urllib.request.urlopen(source) as answer:
            picture = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), float)
        grounds.append(np.median(picture[:, :8].reshape(-1, 3), axis=0))
        middle = picture[48:80, 48:80].reshape(-1, 3).mean(axis=0)
    blue, gray = grounds
    assert blue.argmax() == 2 and np.ptp(blue) > 50 > np.ptp(gray), "the backgrounds"
    assert middle.argmax() == 2 and np.ptp(middle) > 50, "the heart is blue"
