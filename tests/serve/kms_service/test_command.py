"""`attestkit serve --kms`: a simulated KMS beside a simulator, and its options."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.errors import AttestKitError, KmsError, UsageError
from attestkit.kms import KmsClient, KmsRoot
from attestkit.serve.config.agent_settings import decide_settings
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.options import Options
from attestkit.serve.kms_service.kms_factory import serve_kms
from attestkit.verifier import AppraisalPolicy
from tests.serve.client import Connection
from tests.serve.http.attacks import TARGETS
from tests.serve.kms_service.kms_clients import SECONDS, ServedKms, anonymous
from tests.serve.server import SEED, running_server
from tests.untyped import untyped

ADDRESS = "127.0.0.1:0"
_JSON = "application/json"


@pytest.mark.slow
def test_guest_gets_keys_of_the_command(tmp_path: Path) -> None:
    """A guest with the same seed gets its keys with the root that the server has written."""
    options = ("--json", "--seed", SEED, "--kms", ADDRESS, "--kms-fault", "kms_refuses")
    with running_server(*options, folder=tmp_path) as server:
        url = json.loads(server.line)["places"]["kms"]
        assert "simulated KMS, whose keys protect nothing" in server.log()
        root = KmsRoot.load(tmp_path / "kms-root.json")
        with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
            client = KmsClient(url, roots=[root], attester=tee, verifier=tee.verifier())
            with pytest.raises(KmsError, match="simulated fault kms_refuses"):
                client.get_app_keys()
            assert client.get_app_keys().key_provider_id == root.provider_id
        assert SEED not in server.log()


def open_for(tmp_path: Path, environ: dict[str, str] | None = None, **options: Any) -> Any:
    """Start the KMS of these options; return the URLs of its listeners by name."""
    given = Options(seed=SEED, dir=str(tmp_path), backend="simulator", **options)
    settings, limits = decide_settings(given, {}, list), Limits(drain_seconds=0)
    with (
        attestkit.open("simulator", seed=bytes(32)) as tee,
        serve_kms(settings, tee, bytes(32), limits, environ or {}) as (addresses, _),
    ):
        return addresses


def test_kms_is_off_by_default(tmp_path: Path) -> None:
    """Without options there is none."""
    assert open_for(tmp_path) == {}


def test_kms_has_no_key_of_the_app_of_its_server(tmp_path: Path) -> None:
    """Its TCP listener releases keys of the KMS's own roots, and none that is behind a socket."""
    given = Options(seed=SEED, dir=str(tmp_path), backend="simulator", kms=ADDRESS)
    settings, limits, seed = decide_settings(given, {}, list), Limits(), bytes.fromhex(SEED)
    with (
        attestkit.open("simulator", seed=seed) as tee,
        serve_kms(settings, tee, seed, limits, {}) as (addresses, _),
    ):
        own = untyped(tee.backend).app_keys
        secrets = [own.ca_key.pkcs8_pem, own.k256_key.hex(), own.disk_crypt_key.hex()]
        secrets += [tee.keys.derive_compat(path).key.hex() for path in ("a", "")]
        secrets.append(tee.keys.derive_v1("a", "ed25519").key.hex())
        root = KmsRoot.load(tmp_path / "kms-root.json")
        kms = KmsClient(addresses["kms"], roots=[root], attester=tee, verifier=tee.verifier())
        answers = [kms.get_app_keys().to_json().encode()]
        client = anonymous(ServedKms(addresses["kms"], kms.get_meta().ca_cert))
        for method in ("GetMeta", "GetTempCaCert", "GetAppEnvEncryptPubKey"):
            found = client.call(method, {"app_id": tee.app_info.app_id.hex()})
            assert found.status == 200
            answers.append(found.body)
        for target in TARGETS:
            for verb, body in (("GET", None), ("POST", b'{"path":"a","domain":"a"}')):
                found = client.send(verb, target.decode(), body, {"Content-Type": _JSON})
                assert found.status in {400, 404, 405}, (verb, target)
                answers.append(found.body)
    for secret in secrets:
        shown = json.dumps(secret).encode()[1:-1]
        assert not any(shown in answer or secret.encode() in answer for answer in answers)


def test_policy_of_an_app(tmp_path: Path) -> None:
    """--kms-policy takes files of appraisal policies that name their app."""
    path = tmp_path / "policy.toml"
    path.write_text(AppraisalPolicy.default().replace(app_id=(bytes(20),)).to_toml())
    assert open_for(tmp_path, kms=ADDRESS, kms_policy=(str(path),)).keys() == {"kms"}


@pytest.mark.slow
def test_setup_of_the_command(tmp_path: Path) -> None:
    """With --kms-onboarding the roots are written at the end of the setup, before HTTPS."""
    path = tmp_path / "kms-root.json"
    options = ("--json", "--kms", ADDRESS, "--kms-onboarding")
    with running_server(*options, folder=tmp_path, seed=None) as server:
        url = json.loads(server.line)["places"]["kms"]
        assert url.startswith("http://")
        assert "after Bootstrap or Onboard" in server.log()
        assert not path.exists()
        with closing(Connection(url)) as connection:
            created = connection.call("prpc/Onboard.Bootstrap", {"domain": "localhost"}).json()
            assert not path.exists()
            assert connection.call("prpc/Onboard.Finish").body == b"null"
        ends = time.monotonic() + SECONDS
        while "serving HTTPS" not in server.log():
            assert time.monotonic() < ends
            time.sleep(0.01)
        root = KmsRoot.load(path)
        assert (root.provider_id, root.k256_public_key) == (
            created["ca_pubkey"],
            bytes.fromhex(created["k256_pubkey"]),
        )
        meta = KmsClient(url.replace("http:", "https:"), roots=[root]).get_meta()
        assert meta.is_dev
    with running_server(*options, folder=tmp_path, seed=None) as server:
        assert json.loads(server.line)["places"]["kms"].startswith("https://")  # it has keys


def test_administration_needs_a_token(tmp_path: Path) -> None:
    """The token is in the environment, not on the command line."""
    token = {"DSTACK_KMS_ADMIN_TOKEN": "0123456789abcdef"}
    assert open_for(tmp_path, token, kms=ADDRESS, kms_admin=ADDRESS).keys() == {"kms", "kms_admin"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kms_auth": "dev"}, "--kms-auth: requires --kms HOST:PORT"),
        ({"kms_onboarding": True}, "--kms-onboarding: requires --kms HOST:PORT"),
        ({"kms": ADDRESS, "kms_onboarding": True}, "--kms-onboarding: excludes a seed"),
        ({"kms_fault": ("kms_fails",)}, "--kms-fault: requires --kms HOST:PORT"),
        ({"kms": ADDRESS, "kms_admin": ADDRESS}, "--kms-admin: requires a token"),
        ({"kms": ADDRESS, "kms_fault": ("ebusy",)}, "--kms-fault: "),
        ({"kms": ADDRESS, "kms_domain": "a_b"}, "--kms-domain: "),
        ({"kms": ADDRESS, "kms_policy": ("strict",)}, "must have the rule app_id"),
        ({"kms": ADDRESS, "kms_policy": ("x",), "kms_auth": "dev"}, "excludes --kms-auth"),
        ({"kms": "no address"}, "--kms: "),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    """The error names the option."""
    with pytest.raises(AttestKitError) as caught:
        open_for(tmp_path, **options)
    assert isinstance(caught.value, UsageError)
    assert text in str(caught.value)


def test_short_token_is_refused(tmp_path: Path) -> None:
    """A token that could be guessed is an error of the configuration."""
    with pytest.raises(UsageError) as caught:
        open_for(tmp_path, {"DSTACK_KMS_ADMIN_TOKEN": "short"}, kms=ADDRESS, kms_admin=ADDRESS)
    assert caught.value.reason == "wrong_value"
