"""The networks, with the attribute names of the published checkpoints."""
