"""Policies as TOML files: a strict reader, and a writer whose output reads back as equal."""
