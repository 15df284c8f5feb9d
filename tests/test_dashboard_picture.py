"""The picture of the dashboard shows today's page, and can be made anew by its command."""

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from attestkit.serve.pages.static_files import Asset
from tests.rigs.browser import MISSING

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


def test_the_picture_is_of_today_s_page(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page and files that it loads are those that the picture was taken of; and others show."""
    kept = script.PICTURE.read_bytes()
    assert len(kept) < 200_000
    digest = script.page_digest()
    assert script.kept_digest(kept) == digest, f"{SCRIPT.relative_to(ROOT)} takes it anew"
    found = script.asset("dashboard.css")
    changed = Asset(found.content + b"\n", found.digest)
    monkeypatch.setattr(script, "asset", lambda _: changed)
    assert script.page_digest() != digest


def test_the_page_says_what_is_made_up(script: ModuleType) -> None:
    """Whoever sees the picture sees that the TEE in it is none."""
    assert "This TEE is simulated: its quotes prove nothing." in script.page()


@pytest.mark.rig
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_picture_can_be_taken_anew(script: ModuleType) -> None:
    """It has the size, carries the digest, and shows a page: most of it paper, and some ink."""
    fresh = script.shoot()
    assert script.kept_digest(fresh) == script.page_digest()
    with Image.open(io.BytesIO(fresh)) as image:
        assert image.size == (script.WIDTH, script.HEIGHT)
        counted = sorted(count for count, _ in image.convert("RGB").getcolors() or [])
    assert len(counted) > 30
    assert sum(counted) / 2 < counted[-1] < sum(counted) * 0.99
