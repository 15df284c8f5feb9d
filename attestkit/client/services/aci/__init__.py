"""Attested Confidential Inference: reports, keysets and receipts."""
