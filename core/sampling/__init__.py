"""Noise schedule, samplers and guidance."""
