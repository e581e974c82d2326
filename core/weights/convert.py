"""From published names to ours: for every tensor that a network wants, the tensors of a file that make it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from core.config import ControlNetConfig, ModelConfig, TextConfig, UNetConfig

Sources = dict[str, tuple[str, ...]]  # ours -> theirs; several are put end to end along the first axis

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
CONTROL = "control_model."
HF_TEXT = TEXT + "transformer."
# Keys that mark a file holding a ControlNet minus the UNet that it grew from.
DIFFERENCE = ("difference", CONTROL + "difference")
NEW_PARTS = ("input_hint_block.", "zero_convs.", "middle_block_out.")  # of a ControlNet: not in a UNet
DIFFUSERS_CONTROL = "controlnet_cond_embedding."

SCHEDULE_BUFFERS = (
    "betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_(variance|log_variance_clipped"
    "|mean_coef[12])|lvlb_weights|logvar|scale_factor|global_step"
)
HARMLESS = re.compile(
    rf"({SCHEDULE_BUFFERS})|(.*\.)?(position_ids|text_projection(\.weight)?|logit_scale|num_batches_tracked|attn_mask)|v_pred"
    r"|(first_stage_model\.)?model_ema\..*|first_stage_model\.loss\..*"
)


def is_harmless(key: str) -> bool:
    """Tell whether a key is known to come with published files and to mean nothing to the networks."""
    return HARMLESS.fullmatch(key) is not None


def is_difference(names: Iterable[str]) -> bool:
    """Tell whether a file whose keys are ``names`` holds a ControlNet minus the UNet that it grew from."""
    return any(key in DIFFERENCE for key in names)


def is_new(key: str) -> bool:
    """Tell whether a ControlNet's published ``key`` names a part that no UNet has."""
    return key.removeprefix(CONTROL).startswith(NEW_PARTS)


def prefixed(wanted: Iterable[str], prefix: str) -> Sources:
    """Find every key behind ``prefix``."""
    return {key: (prefix + key,) for key in wanted}


def text_sources(config: TextConfig, wanted: Iterable[str], names: Mapping[str, object]) -> Sources:
    """Find the text encoder's tensors in a file whose keys are ``names``."""
    if config.layout == "open_clip":
        return prefixed(wanted, TEXT + "model.")
    # Some merged files lost the "text_model." level.
    whole = any(name.startswith(HF_TEXT + "text_model.") for name in names) or not any(
        name.startswith(HF_TEXT) for name in names
    )
    prefix = HF_TEXT + ("text_model." if whole else "")
    return {key: tuple(prefix + theirs for theirs in hf_text_keys(key)) for key in wanted}


HF_TEXT_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
}
HF_TEXT_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def hf_text_keys(key: str) -> tuple[str, ...]:
    """Name the tensors of the published ViT-L/14 text model that make our ``key``: three for ``in_proj``."""
    if key in HF_TEXT_TOP:
        return (HF_TEXT_TOP[key],)
    if not key.startswith("transformer.resblocks."):
        return (key.replace("ln_final", "final_layer_norm"),)
    _, _, n, rest = key.split(".", 3)
    layer = f"encoder.layers.{n}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return tuple(f"{layer}self_attn.{letter}_proj.{kind}" for letter in "qkv")
    part, kind = rest.rsplit(".", 1)
    return (f"{layer}{HF_TEXT_PARTS.get(part, part.replace('attn', 'self_attn'))}.{kind}",)


def control_sources(config: ModelConfig, wanted: Iterable[str], names: Mapping[str, object]) -> Sources:
    """Find a ControlNet's tensors in a file whose keys are ``names``, whichever layout that has."""
    if any(name.startswith(DIFFUSERS_CONTROL) for name in names):
        return {key: (diffusers_key(key, config.unet, config.control),) for key in wanted}
    return prefixed(wanted, CONTROL if any(name.startswith(CONTROL) for name in names) else "")


DIFFUSERS_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
DIFFUSERS_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")


def diffusers_key(key: str, unet: UNetConfig, control: ControlNetConfig) -> str:
    """Name the tensor of the diffusers layout that is our ControlNet's ``key``.

    Their blocks are ours in the same order: each level is ``res_blocks`` residual blocks, with or without a
    transformer each, and, but for the last level, one downsampler.
    """
    top, n, rest = key.split(".", 2)
    number = int(n)
    if top == "time_embed":
        return f"time_embedding.linear_{number // 2 + 1}.{rest}"
    if top == "input_hint_block":
        last = 4 * len(control.hint_widths) - 2  # convolutions stand at the even numbers, activations between
        name = {0: "conv_in", last: "conv_out"}.get(number, f"blocks.{number // 2 - 1}")
        return f"{DIFFUSERS_CONTROL}{name}.{rest}"
    if top == "zero_convs":
        return f"controlnet_down_blocks.{number}.{rest.removeprefix('0.')}"
    if top == "middle_block_out":
        return f"controlnet_mid_block.{rest}"
    if top == "middle_block":
        return f"mid_block.{DIFFUSERS_MIDDLE[number]}.{diffusers_inner(rest)}"
    if number == 0:
        return f"conv_in.{rest.removeprefix('0.')}"
    level, place = level_of(number - 1, unet.res_blocks)
    layer, rest = rest.split(".", 1)
    if place == unet.res_blocks[level]:
        return f"down_blocks.{level}.downsamplers.0.{rest.replace('op.', 'conv.')}"
    kind = "attentions" if layer == "1" else "resnets"
    return f"down_blocks.{level}.{kind}.{place}.{diffusers_inner(rest)}"


def level_of(number: int, res_blocks: Sequence[int]) -> tuple[int, int]:
    """Return a block's level and its place there; each level has one more than ``res_blocks``."""
    for level, count in enumerate(res_blocks):
        if number <= count:
            return level, number
        number -= count + 1
    raise IndexError(f"there are {sum(res_blocks) + len(res_blocks)} blocks, not {number + 1} more")


def diffusers_inner(rest: str) -> str:
    """Name a tensor of a residual block, or of a transformer, which has the same names in both layouts."""
    part, kind = rest.rsplit(".", 1)
    return f"{DIFFUSERS_RESNET.get(part, part)}.{kind}"
