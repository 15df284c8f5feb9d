"""Diagnosis: the first event in which evidence differs from expected measurements, and why."""
