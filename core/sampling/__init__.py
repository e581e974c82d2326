"""From noise to latents: the noise schedule, the samplers and classifier-free guidance."""
