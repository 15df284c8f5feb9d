"""Start of the server program: an agent on a TEE or a simulator, or a verifier without an agent.

Each module starts one of them, with the settings that `__main__` has decided.
"""
