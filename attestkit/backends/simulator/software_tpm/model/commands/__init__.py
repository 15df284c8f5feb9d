"""Commands of the software TPM, by subject, and the table that finds them by command code."""
