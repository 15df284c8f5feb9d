"""`attestkit serve` on emulated guests of clouds: the detected backend, and evidence by curl."""

import json
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from attestkit.collateral import Collateral
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.rigs.run.attestkit_run import requires_run, run
from tests.serve.backends.test_clouds import CLOUDS

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    requires_run,
    pytest.mark.skipif(shutil.which("curl") is None, reason="missing: curl"),
]

NONCE: Final = bytes(range(64))
COMPOSE: Final = {
    "manifest_version": 2,
    "name": "demo",
    "runner": "docker-compose",
    "docker_compose_file": "services: {}",
}
SCRIPT: Final = f"""
cp /run/attestkit/*.der . && cp /run/attestkit/*.json . 2> /dev/null || true
{sys.executable} -m attestkit serve BACKEND --app-compose compose.json --dir "$PWD/tee" \\
    --http unix:"$PWD/tee/http.sock" > ready 2> log &
until test -s ready; do kill -0 $! || {{ cat log >&2; exit 1; }}; sleep 0.1; done
send() {{ curl -sS --unix-socket tee/dstack.sock -d "$2" http://dstack/$1; }}
send EmitEvent '{{"event": "model-loaded", "payload": "00"}}' > event
send Attest '{{"report_data": "{NONCE.hex()}"}}' > evidence
send v1/Attest '{{"report_data": "{NONCE.hex()}"}}' > evidence-v1
curl -sS --unix-socket tee/http.sock http://localhost/ > dashboard
kill $!
wait $!
"""


@pytest.mark.parametrize("platform", CLOUDS)
def test_detected_guest_is_served(platform: str, tmp_path: Path) -> None:
    """The server never simulates there, and its answers verify outside by the machine's root."""
    cloud = CLOUDS[platform]
    (tmp_path / "compose.json").write_text(json.dumps(COMPOSE))
    script = SCRIPT.replace("BACKEND", "--backend tpm" if platform == "tpm" else "")
    done = run("sh", "-euc", script, options=("--platform", platform), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "attestkit serves a TEE, on hardware" in (tmp_path / "log").read_text()
    event = (tmp_path / "event").read_text()
    assert (event == "null") == bool(cloud.events), event
    saved, policy = tmp_path / "collateral.json", AppraisalPolicy.default()
    verifier = Verifier(
        policy=policy.replace(
            platforms={cloud.evidence},
            vlek_providers={"attestkit-simulator"},
            trusted_aks=trusted_keys(tmp_path / "evidence") if platform == "tpm" else None,
        ),
        trust_anchor=(tmp_path / "trust-anchor.der").read_bytes(),
        collateral=Collateral.load(saved) if saved.exists() else None,
    )
    answer = (tmp_path / "evidence").read_bytes()
    result = verifier.verify(answer, report_data=NONCE)
    assert result.claims.platform == cloud.evidence
    second = (tmp_path / "evidence-v1").read_bytes()
    if cloud.evidence.startswith("dstack-"):
        assert verifier.verify(second, report_data=NONCE).claims.platform == cloud.evidence
    else:
        assert f"cannot represent {cloud.evidence}" in json.loads(second)["error"]
    if platform != "aws-snp":  # whose host names no app, so that there is no identity to show
        assert f'<span class="pill">{cloud.title}</span>' in (tmp_path / "dashboard").read_text()


def trusted_keys(answer: Path) -> set[bytes]:
    """Return the key of a plain TPM in an answer of Attest."""
    from attestkit.attestation import Attestation
    from attestkit.attestation.wire.evidence_parts import Tpm
    from attestkit.tpm import TpmtPublic

    evidence = bytes.fromhex(json.loads(answer.read_bytes())["attestation"])
    platform = Attestation.from_bytes(evidence).evidence.platform
    assert isinstance(platform, Tpm)
    return {TpmtPublic.parse(platform.vtpm_quote.ak_public).spki}
