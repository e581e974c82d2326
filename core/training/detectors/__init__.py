"""Small detectors trained on the toy world: stand-ins where the published ones are missing."""
