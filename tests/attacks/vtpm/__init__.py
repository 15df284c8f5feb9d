"""Attempts on evidence of guests with a TPM."""
