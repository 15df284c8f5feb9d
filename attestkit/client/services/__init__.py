"""The supported services, one per module; `service.py` defines the interface."""
