"""The container engine on its socket: which containers there are, and what they wrote.

Whatever it answers is checked, for it need not be the engine.
"""
