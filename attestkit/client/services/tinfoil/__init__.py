"""Documents of Tinfoil's enclaves, of all generations (attested-client.md, 2.7)."""
