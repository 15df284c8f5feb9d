"""Faults against a running server while clients work: `make chaos`, and docs/security/chaos.md."""
