"""The dashboard's picture shows the current page, and its command can take it again."""

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from attestkit.serve.pages.static_files import Asset
from tests.rigs.browser.chromium import MISSING

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs" / "dashboard" / "shoot.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="docs/dashboard is not here")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that takes the picture."""
    spec = importlib.util.spec_from_file_location("shoot", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_picture_shows_current_page(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture's digest is that of the page and its files, and changes with them."""
    kept = script.PICTURE.read_bytes()
    assert len(kept) < 200_000
    digest = script.page_digest()
    assert script.kept_digest(kept) == digest, f"{SCRIPT.relative_to(ROOT)} takes it anew"
    found = script.get_asset("dashboard.css")
    changed = Asset(found.content + b"\n", found.digest)
    monkeypatch.setattr(script, "get_asset", lambda _: changed)
    assert script.page_digest() != digest


def test_page_states_simulation(script: ModuleType) -> None:
    """The page in the picture states that its TEE is simulated."""
    assert "This TEE is simulated: its quotes prove nothing." in script.page()


@pytest.mark.rig
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_picture_can_be_taken_again(script: ModuleType) -> None:
    """The picture has its size and digest, and shows a page: mostly background, with some text."""
    fresh = script.shoot()
    assert script.kept_digest(fresh) == script.page_digest()
    with Image.open(io.BytesIO(fresh)) as image:
        assert image.size == (script.WIDTH, script.HEIGHT)
        counted = sorted(count for count, _ in image.convert("RGB").getcolors() or [])
    assert len(counted) > 30
    assert sum(counted) / 2 < counted[-1] < sum(counted) * 0.99
