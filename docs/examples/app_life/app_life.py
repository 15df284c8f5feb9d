"""The life of an app whose keys come from a KMS, on one machine without a TEE.

The KMS and the guests are simulated. The owner of the app decides with a file, in the format of
dstack's auth-simple, which builds get its keys. Each step prints what happened, and the program
fails if anything else does.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attestkit
from attestkit import Attester, verify_key_chain
from attestkit.dstack import AppCompose
from attestkit.errors import AttestKitError, KmsError
from attestkit.kms import KmsClient, KmsRoot, SimulatedKms, open_env, seal_env

SEED = bytes(range(32))  # of the simulated vendor, whose machines the KMS trusts
APP_ID = bytes.fromhex("5a" * 20)
WALLET = {"domain": "wallet/eth", "algorithm": "secp256k1"}


def compose(version: int) -> bytes:
    """Return the app-compose of a version, which is measured."""
    fields = {"manifest_version": 2, "name": f"app-{version}", "runner": "docker-compose"}
    return json.dumps({**fields, "key_provider": "kms"}).encode()


class Owner:
    """The owner of the app, with the file that the KMS reads at each request."""

    def __init__(self, rules: Path, image: bytes) -> None:
        self.rules, self.image = rules, image

    def allow(self, *versions: int) -> None:
        """Allow these versions, on any device, and no others."""
        hashes = [AppCompose.parse(compose(version)).compose_hash.hex() for version in versions]
        app = {"composeHashes": hashes, "allowAnyDevice": True}
        rules = {"osImages": [self.image.hex()], "apps": {APP_ID.hex(): app}}
        self.rules.write_text(json.dumps(rules))
        print("owner allows:", ", ".join(f"version {version}" for version in versions))


class Cloud:
    """Machines that boot versions of the app with keys of a pinned KMS."""

    def __init__(self, folder: Path, kms: SimulatedKms) -> None:
        self.folder, self.kms = folder, kms
        self.pins = [kms.root]  # on hardware: from the KMS contract

    @contextmanager
    def boot(self, version: int, machine: str = "first", **options: Any) -> Iterator[Attester[Any]]:
        """Boot a version on a machine; its state is kept."""
        if machine != "first":
            options["scenario"] = "ok-second-platform"
        with attestkit.open(
            "simulator",
            seed=SEED,
            app_id=APP_ID,
            app_compose=compose(version),
            state_dir=self.folder / machine,
            kms=self.kms.url,
            kms_roots=self.pins,
            **options,
        ) as tee:
            yield tee

    def refused(self, version: int) -> None:
        """Boot a version that gets no keys."""
        try:
            with self.boot(version):
                raise SystemExit(f"version {version} got keys")
        except KmsError as error:
            print(f"version {version} refused:", str(error).rpartition(": ")[2])


def wallet(tee: Attester[Any]) -> str:
    """Return the public key of the app's wallet."""
    return tee.keys.derive_v1(**WALLET).public_key.hex()[:16]


def verify_wallet(tee: Attester[Any], pins: list[KmsRoot]) -> str:
    """Verify the wallet as a relying party that knows app id and pins only."""
    key = tee.keys.derive_v1(**WALLET)  # what the app sends
    roots = [pin.k256_public_key for pin in pins if pin.k256_public_key]
    public, chain = key.public_key, key.signature_chain
    try:
        verify_key_chain(public, chain, app_id=APP_ID, kms_roots=roots, **WALLET)
    except AttestKitError as error:
        return f"refused, {error.reason}"
    return "accepted"


def boots(cloud: Cloud) -> str:
    """First boot, reboot, and a second machine."""
    with cloud.boot(1) as tee:
        first, disk = wallet(tee), tee.backend.app_keys.disk_crypt_key
        print("first boot, wallet:", first)
        print("relying party:", verify_wallet(tee, cloud.pins))
        tee.backend.reset()
    with cloud.boot(1) as tee:
        print("second boot, same keys:", wallet(tee) == first)
    with cloud.boot(1, "second") as tee:
        print("second machine, same wallet:", wallet(tee) == first, end=", ")
        print("own disk key:", tee.backend.app_keys.disk_crypt_key != disk)
    return first


def upgrade(cloud: Cloud, owner: Owner, first: str) -> None:
    """Upgrade to a version before and after it is allowed; then revoke the old one."""
    cloud.refused(2)
    owner.allow(1, 2)
    with cloud.boot(2) as tee:
        print("version 2, same wallet:", wallet(tee) == first)
    with cloud.boot(1, "second") as running:
        owner.allow(2)
        print("running version 1 keeps its wallet:", wallet(running) == first)
    cloud.refused(1)


def sealed_environment(cloud: Cloud) -> None:
    """Seal a variable to the app, and open it in the guest."""
    public_key = KmsClient(cloud.kms.url, roots=cloud.pins).env_public_key(APP_ID)
    sealed = seal_env({"TOKEN": "s3cret"}.items(), public_key)
    with cloud.boot(2) as tee:
        found = open_env(sealed, tee.backend.app_keys.env_crypt_key, allowed=["TOKEN"])
        print("guest opens:", ", ".join(found))


def rollover(cloud: Cloud) -> None:
    """Replace the roots of the KMS while it runs."""
    cloud.kms.arm("kms_rollover")
    try:
        with cloud.boot(2, "third"):
            raise SystemExit("keys of a KMS that is not pinned")
    except KmsError as error:
        print("rollover, old pin:", error.reason)
    new = cloud.kms.root  # on hardware: from the KMS contract, never from the KMS
    with cloud.boot(2) as tee:  # its boot is complete: kept keys, without the KMS
        print("running guest, both pins:", verify_wallet(tee, [*cloud.pins, new]))
    cloud.pins.append(new)
    with cloud.boot(2, "third") as tee:
        print("new guest, old pin alone:", verify_wallet(tee, cloud.pins[:1]))
        print("new guest, both pins:", verify_wallet(tee, cloud.pins))


def main() -> None:
    """Run the life of the app in a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep the files there; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, attestkit.open("simulator", seed=SEED) as tee:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        owner = Owner(folder / "auth-config.json", tee.app_info.os_image_hash)
        owner.allow(1)
        with SimulatedKms(tee.verifier(), seed=SEED, auth=owner.rules) as kms:
            cloud = Cloud(folder, kms)
            first = boots(cloud)
            upgrade(cloud, owner, first)
            sealed_environment(cloud)
            rollover(cloud)


if __name__ == "__main__":
    main()
