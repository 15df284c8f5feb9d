"""Sources of the keys of a simulated KMS: a seed, a folder, or its owner."""

import os
from pathlib import Path

from attestkit.errors import UsageError
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.release.state_folder import KmsState, KmsStateFolder, create_state


class KeySource:
    """Source of the keys: at most one of these arguments; without any, new keys in memory.

    Args:
        seed: 32 bytes from which all keys are derived.
        roots: The keys.
        state_dir: Folder that keeps them; it is locked until `close`.

    Attributes:
        folder: The folder; None without one.

    Raises:
        UsageError: If more than one argument is given.
        ConfigError: If the folder is not usable.
    """

    def __init__(
        self,
        seed: bytes | None,
        roots: KmsRoots | None,
        state_dir: str | os.PathLike[str] | None,
    ) -> None:
        given = [name for name, value in (("seed", seed), ("roots", roots)) if value is not None]
        if len(given) > 1 or (given and state_dir is not None):
            text = "pass only one of seed, roots and state_dir"
            raise UsageError(f"{given[0]}: conflict; {text}", reason="conflict")
        self._seed, self._roots = seed, roots
        self.folder: KmsStateFolder | None = None
        if state_dir is not None:
            self.folder = KmsStateFolder(Path(state_dir))

    @property
    def has_keys(self) -> bool:
        """Whether there are keys, which need not be created."""
        if self.folder is not None:
            return not self.folder.is_empty
        return self._seed is not None or self._roots is not None

    def make_state(self, domain: str, now: int) -> KmsState:
        """Return the keys with certificates for a domain; create them if there are none."""
        if self.folder is not None:
            return self.folder.load_or_create(domain, now)
        roots = self._roots
        if roots is None:
            roots = KmsRoots.generate() if self._seed is None else KmsRoots.from_seed(self._seed)
        return create_state(roots, domain, now)

    def close(self) -> None:
        """Unlock the folder."""
        if self.folder is not None:
            self.folder.close()
