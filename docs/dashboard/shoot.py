"""Take pictures of two pages: dashboard.png of the server's page at `/`, report.png of a report.

Usage, in a checkout: PYTHONPATH=. python docs/dashboard/shoot.py [FOLDER]

The dashboard is the server's own, of a simulated TEE from one seed, at one instant. The machine
below it and its container engine are made up here, so that a picture changes with the page only.
The report is that of `attestkit report`, about simulated evidence of a TD with a vTPM and two GPUs;
its signatures are new in each picture. Needs Chromium, playwright and Pillow.
"""

import asyncio
import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import urlsplit

from PIL import Image

import attestkit
from attestkit.__main__ import main as run_command
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve import listener_apps
from attestkit.serve.api_docs import views
from attestkit.serve.container_logs import view as logs
from attestkit.serve.docker.engine import Container, ContainerEngine
from attestkit.serve.http.views import View, ViewRequest
from attestkit.serve.machine_info import Disk, Figures, Load, Memory
from attestkit.serve.pages import dashboard
from attestkit.serve.pages.dashboard import ASSETS, get_asset
from attestkit.serve.services.context import Guest

__all__ = ["HEIGHT", "WIDTH", "page", "report", "shoot"]

WIDTH: Final = 1200  # pixels
HEIGHT: Final = 1030  # as far as the registers
REPORT_HEIGHT: Final = 2096  # as far as the last verification step
SEED: Final = bytes(range(32))
NOW: Final = 1_790_000_000.0  # 2026-09-21T14:13:20Z
GIB: Final = 1 << 30
APP: Final = {
    "manifest_version": 2,
    "name": "trading-agent",
    "runner": "docker-compose",
    "docker_compose_file": "services:\n  agent:\n    image: trading-agent:1.4\n",
    "public_logs": True,
    "public_sysinfo": True,
    "public_tcbinfo": True,
}
MACHINE: Final = Figures(
    os_name="DStack",
    os_version="0.5.4",
    kernel="6.9.0-dstack",
    cpu="cpu0 @2600 MHz",
    cpus=4,
    memory=Memory(8 * GIB, 5 * GIB, 4 * GIB),
    swap=Memory(0, 0, 0),
    uptime=93_784,
    load=Load(31, 22, 18),
    disks=(Disk("/dev/vdb", "/", 40 * GIB, 29 * GIB),),
)
RUNNING: Final = [
    Container("4d0d6b4e1e13", "trading-agent:1.4", "running", "Up 26 hours", ("agent",)),
    Container("9f31c2a07b55", "redis:7-alpine", "running", "Up 26 hours", ("redis",)),
    Container("c07e5d9a1f02", "trading-agent:1.4", "exited", "Exited (0)", ("migrate",)),
]


class MadeUp(ContainerEngine):
    """A container engine that has always the same to tell."""

    async def list_containers(self) -> list[Container]:
        """Return the containers above."""
        return RUNNING


def page() -> str:
    """Return the page as a server sends it."""
    simulator = Simulator(seed=SEED, app_compose=json.dumps(APP).encode(), now=lambda: NOW)
    with Attester(simulator) as tee:
        tee.emit_event("model-loaded", b"llama-3")
        guest = Guest(
            tee,
            app_compose=simulator.app_compose,
            app_keys=simulator.app_keys,
            now=lambda: NOW,
            random=bytes,
        )
        guest.containers = MadeUp()
        paths = views.list_paths(listener_apps.EXTERNAL_SERVICES)
        view = listener_apps.make_views(guest, logs.make_views(guest), linked=paths)["/"]
        with (
            mock.patch.object(dashboard, "read_figures", return_value=MACHINE),
            mock.patch.object(dashboard, "has_nvidia_gpu", return_value=False),
        ):
            text = asyncio.run(_shown(view, guest))
        guest.close()
    return text


async def _shown(view: View, guest: Guest) -> str:
    body = (await view.show(guest, ViewRequest())).body
    assert isinstance(body, bytes)
    return body.decode()


def report() -> str:
    """Return the report of a TD with a vTPM and two GPUs."""
    nonce = bytes(32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with attestkit.open(
            "simulator", platform="azure-tdx", gpus=2, seed=SEED, now=lambda: NOW
        ) as tee:
            backend: Any = tee.backend
            evidence = tee.attest(nonce=nonce, gpu=True).to_bytes()
            (folder / "evidence").write_bytes(evidence)
            (folder / "roots.json").write_bytes(backend.roots.to_json())
            backend.collateral().save(folder / "collateral.json")
            (folder / "gpu.json").write_bytes(backend.gpu_endorsements().to_json())
        words = ["report", "evidence", "--nonce", nonce.hex(), "--trust-anchor", "roots.json"]
        words += ["--collateral", "collateral.json", "--gpu-endorsements", "gpu.json"]
        with contextlib.chdir(folder):
            if run_command([*words, "--at", str(NOW), "-o", "page.html"]) != 0:
                raise RuntimeError("the evidence was not accepted")
        return (folder / "page.html").read_text(encoding="utf-8")


def shoot(text: str, height: int = HEIGHT) -> bytes:
    """Return the picture of a page."""
    from playwright.sync_api import Route, sync_playwright  # late: to ask for the page needs none

    files = {"/": (b"text/html; charset=utf-8", text.encode())}
    files |= {f"/assets/{name}": (kind, get_asset(name).content) for name, kind in ASSETS.items()}

    def answer(route: Route) -> None:
        kind, body = files[urlsplit(route.request.url).path]
        route.fulfill(content_type=kind.decode(), body=body)

    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(
            viewport={"width": WIDTH, "height": height},
            color_scheme="light",
            reduced_motion="reduce",
        )
        tab.route("**/*", answer)
        tab.goto("http://127.0.0.1/", wait_until="networkidle")
        picture = tab.screenshot()
        chromium.close()
    return _small(picture)


def _small(screenshot: bytes) -> bytes:
    """Return it in 256 colours, which is all that the page has but for the edges of letters."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(screenshot)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Take the pictures, and write them."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    for name, text, height in (
        ("dashboard.png", page(), HEIGHT),
        ("report.png", report(), REPORT_HEIGHT),
    ):
        (folder / name).write_bytes(shoot(text, height))
        print(folder / name)


if __name__ == "__main__":
    main()
