"""The detectors' networks."""
