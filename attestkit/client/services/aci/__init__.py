"""Attested Confidential Inference: reports, keysets and receipts (attested-client.md, 2.5)."""
