"""Attempts on the release of keys, the clients of a KMS, and sealed environments."""
