"""Evidence of a device: attestation report and mode, and the certificates of its signing key."""
