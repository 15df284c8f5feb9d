"""Azure confidential VMs: evidence of the paravisor's TPM, and Azure's metadata service."""
