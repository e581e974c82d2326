"""The names that tensors of UNet and autoencoder have in the diffusers layout."""

from __future__ import annotations

from collections.abc import Iterable

from core.config import ControlNetConfig, UNetConfig, VAEConfig
from core.weights.convert import diffusers_inner, diffusers_key, level_of

UNET_ENDS = {"0": "conv_norm_out", "2": "conv_out"}
VAE_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
VAE_PARTS = {"nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# What the attention of autoencoders written by diffusers before 0.18 is called.
OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet_key(key: str, unet: UNetConfig) -> str:
    """Name the tensor of the diffusers layout that is our UNet's ``key``."""
    top, n, rest = key.split(".", 2)
    if top == "out":
        return f"{UNET_ENDS[n]}.{rest}"
    if top != "output_blocks":
        return diffusers_key(key, unet, ControlNetConfig())
    level, place = level_of(int(n), unet.res_blocks[::-1])
    layer, rest = rest.split(".", 1)
    if layer != "0" and rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    kind = "attentions" if layer == "1" else "resnets"
    return f"up_blocks.{level}.{kind}.{place}.{diffusers_inner(rest)}"


def vae_key(key: str, vae: VAEConfig) -> str:
    """Name the tensor of the diffusers layout that is our autoencoder's ``key``."""
    half, _, rest = key.partition(".")
    if half not in {"encoder", "decoder"}:
        return key
    top, _, rest = rest.partition(".")
    if top == "mid":
        part, _, rest = rest.partition(".")
        return f"{half}.mid_block.{VAE_MIDDLE[part]}.{_vae_inner(rest, attention=part == 'attn_1')}"
    if top not in {"down", "up"}:
        return f"{half}.{VAE_PARTS.get(top, top)}.{rest}"
    n, part, rest = rest.split(".", 2)
    level = int(n) if top == "down" else len(vae.ch_mult) - 1 - int(n)
    if part == "block":
        m, rest = rest.split(".", 1)
        return f"{half}.{top}_blocks.{level}.resnets.{m}.{_vae_inner(rest)}"
    return f"{half}.{top}_blocks.{level}.{part}rs.0.{rest}"  # downsample, upsample


def _vae_inner(rest: str, *, attention: bool = False) -> str:
    part, kind = rest.rsplit(".", 1)
    return f"{(VAE_ATTENTION if attention else VAE_PARTS).get(part, part)}.{kind}"


def found_vae_key(key: str, vae: VAEConfig, names: Iterable[str]) -> str:
    """Name our autoencoder's ``key`` as a file does whose keys are ``names``: older ones differ in a part."""
    theirs = vae_key(key, vae)
    if theirs in names:
        return theirs
    for new, old in OLD_VAE_ATTENTION.items():
        theirs = theirs.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return theirs
