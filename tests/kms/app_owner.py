"""The owner of an app, its guests and their keys, for tests of the life of an app."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import KmsError
from attestkit.keys import DerivedKey
from attestkit.kms import KmsRoot, SimulatedKms, boot_with_kms
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, names
from tests.raising import raises

APP_ID: Final = bytes.fromhex("5a" * 20)
PATH: Final = "wallet"


def app(version: int, **fields: object) -> bytes:
    """Return the app-compose of a version of the app."""
    known = {"manifest_version": 2, "name": f"app-{version}", "runner": "docker-compose"}
    return json.dumps({**known, "key_provider": "kms", **fields}).encode()


class Owner:
    """The owner of the app, who decides with a file of auth-simple which builds get its keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(Simulator(seed=SEED)) as simulator:
            image = simulator.launch().os_image_hash
        self.rules: dict[str, Any] = {"devices": [], "allowAnyDevice": True}
        self.config: dict[str, Any] = {
            "osImages": [image.hex()],
            "apps": {APP_ID.hex(): self.rules},
        }
        self.allow(1)

    def allow(self, *versions: int) -> None:
        """Allow these versions of the app, and no others."""
        self.rules["composeHashes"] = [
            AppCompose.parse(app(one)).compose_hash.hex() for one in versions
        ]
        self.save()

    def save(self) -> None:
        """Write the file, which the KMS reads at each request."""
        self.path.write_text(json.dumps(self.config))


class Keys(NamedTuple):
    """Keys of a guest after its boot."""

    root: bytes  # public
    derived: DerivedKey
    env: bytes
    disk: bytes


def machine(version: int = 1, **options: object) -> Attester[Simulator]:
    """Return a guest that is about to boot a version of the app."""
    return guest(app_id=APP_ID, app_compose=app(version), **options)


def keys_of(tee: Attester[Simulator]) -> Keys:
    """Return the keys of a booted guest."""
    keys = tee.backend.app_keys
    derived = tee.keys.derive_compat(PATH, "ethereum", "secp256k1")
    return Keys(keys.root_public_key, derived, keys.env_crypt_key, keys.disk_crypt_key)


def boot(kms: SimulatedKms, version: int = 1, **options: object) -> Keys:
    """Boot a version of the app in a new guest, and return its keys."""
    with machine(version, **options) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        assert names(tee) == EVENTS
        return keys_of(tee)


def assert_refused(
    kms: SimulatedKms, tee: Attester[Simulator], part: str, *, roots: KmsRoot | None = None
) -> None:
    """Boot a guest that gets no keys, and stops at `boot-mr-done`."""
    with raises(KmsError, "refused", part=part):
        boot_with_kms(tee, kms.url, roots=[roots or kms.root])
    assert names(tee) == PREFIX
