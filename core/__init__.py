"""The shared core: a ControlNet-conditioned latent diffusion model that turns a Request into pictures."""
