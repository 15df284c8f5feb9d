"""What can be made to go wrong with a simulated TEE, by name and count.

A specification says what and how often; injection makes it happen at the calls.
"""
