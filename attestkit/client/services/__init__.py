"""Services whose evidence is understood, a module each; `service.py` says what a service is."""
