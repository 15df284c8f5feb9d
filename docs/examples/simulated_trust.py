"""Write what a verifier needs to believe one simulated TEE. On hardware nothing of this is used.

A simulator signs with a root of its own, which nobody believes unless told to. This makes a seed
for one, and from it the four files that the examples hand to their verifiers:

seed              the simulator's; whoever has it can forge the simulator's evidence
trust-anchor.der  its root, in place of the makers' (`--trust-anchor`)
collateral.json   what its stand-in for Intel says (`--collateral`), in place of a PCCS
policy.toml       image and app of this TEE (`--policy`); hardware's: `attestkit policy`
"""

import argparse
import secrets
from pathlib import Path

from attestkit import Verifier
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.verifier.policy.toml_writer import pin, to_toml


def write_trust(folder: Path, app_compose: bytes | None) -> None:
    """Make `folder`, and the files in it."""
    folder.mkdir(mode=0o700)
    seed, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    (folder / "seed").touch(mode=0o600)
    (folder / "seed").write_bytes(seed)
    simulator = Simulator(seed=seed, app_compose=app_compose)
    root, collateral = simulator.trust_anchor, simulator.collateral()
    with Attester(simulator) as tee:
        evidence = tee.attest(nonce).to_bytes()
    known_good = Verifier(root, collateral).verify(evidence, report_data=nonce)
    (folder / "trust-anchor.der").write_bytes(root)
    collateral.save(folder / "collateral.json")
    (folder / "policy.toml").write_text(to_toml(pin(known_good)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; it must not be there yet")
    parser.add_argument("--app-compose", type=Path, help="the app; else the simulator's own")
    args = parser.parse_args()
    write_trust(args.folder, args.app_compose and args.app_compose.read_bytes())
    print(f"{args.folder}: seed, trust-anchor.der, collateral.json, policy.toml (SIMULATED)")


if __name__ == "__main__":
    main()
