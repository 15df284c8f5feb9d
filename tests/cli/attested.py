"""Options of commands that prove a simulated server, and the files that they name."""

from pathlib import Path

from attestkit.errors import UnsupportedError
from attestkit.testing import AttestedServer


def trust(server: AttestedServer, folder: Path) -> list[str]:
    """Write root, collateral and CA of a server; return the options without a policy."""
    (folder / "ca.pem").write_text(server.ca)
    (folder / "root.der").write_bytes(server.tee.trust_anchor)
    options = [f"--server-ca={folder / 'ca.pem'}", f"--trust-anchor={folder / 'root.der'}"]
    try:
        server.tee.collateral.save(folder / "collateral.json")
    except UnsupportedError:  # SEV-SNP
        return options
    return [*options, f"--collateral={folder / 'collateral.json'}"]


def options(server: AttestedServer, folder: Path) -> list[str]:
    """Write a policy that pins the server's app, too; return all options."""
    (folder / "policy.toml").write_text(server.policy.policy.to_toml())
    return [*trust(server, folder), f"--policy={folder / 'policy.toml'}"]
