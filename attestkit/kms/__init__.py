"""Keys from a dstack KMS or a local key provider, and environment variables sealed to an app."""
