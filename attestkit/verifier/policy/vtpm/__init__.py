"""Rules of policies about guests behind a TPM: PCRs, keys, joins, paravisor, cloud instance.

`pinned_vtpm_rules` makes them of a verified piece of evidence.
"""
