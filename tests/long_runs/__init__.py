"""Programs that run for minutes or hours and write records."""
