"""Documents of Tinfoil's enclaves, of all generations."""
