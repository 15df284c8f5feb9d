"""Client of a dstack KMS, and the decisions and keys of a simulated KMS."""
