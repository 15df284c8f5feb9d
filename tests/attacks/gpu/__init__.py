"""Attempts on evidence of GPUs: reports, certificates, endorsements, tokens, and bindings."""
