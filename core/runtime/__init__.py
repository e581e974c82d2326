"""Where the networks live: device, dtype, memory placement and the cache of ControlNets."""
