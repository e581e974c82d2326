"""Training: the toy world, the demo model's networks and ControlNets; ``python -m core.training`` runs it."""
