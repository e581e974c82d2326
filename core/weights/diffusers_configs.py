"""The JSON files of the diffusers layout: what each network is made of, in that library's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from core.models.tokenizer import END_TOKEN, START_TOKEN, tokenizer

Json = dict[str, Any]

VERSION = "0.30.0"  # of the library; later ones read it as well
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
START, END = "<|startoftext|>", "<|endoftext|>"


def unet_json(config: ModelConfig) -> Json:
    """Return the config of a UNet2DConditionModel."""
    unet = config.unet
    crossed = _crossed(unet)
    return {
        **_encoder_json(config, "UNet2DConditionModel"),
        "center_input_sample": False,
        "out_channels": unet.out_channels,
        "sample_size": config.resolution // _factor(config.vae),
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
    }


def control_json(config: ModelConfig) -> Json:
    """Return the config of a ControlNetModel."""
    return {
        **_encoder_json(config, "ControlNetModel"),
        "conditioning_channels": config.control.hint_channels,
        "conditioning_embedding_out_channels": list(config.control.hint_widths),
        "controlnet_conditioning_channel_order": "rgb",
    }


def _encoder_json(config: ModelConfig, kind: str) -> Json:
    unet = config.unet
    channels = [unet.model_channels * mult for mult in unet.channel_mult]
    heads: int | list[int] = unet.num_heads
    if unet.num_heads <= 0:
        heads = [width // unet.num_head_channels for width in channels]
    return {
        "_class_name": kind,
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,  # the library's name for the number of heads
        "block_out_channels": channels,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in _crossed(unet)],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.level_res_blocks or unet.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "transformer_layers_per_block": unet.transformer_depth,
        "use_linear_projection": unet.use_linear_in_transformer,
    }


def _crossed(unet: UNetConfig) -> list[bool]:
    """Tell for each level whether it has transformers."""
    return [2**level in unet.attention_resolutions for level in range(len(unet.channel_mult))]


def _factor(vae: VAEConfig) -> int:
    return 2 ** (len(vae.ch_mult) - 1)


def vae_json(config: ModelConfig) -> Json:
    """Return the config of an AutoencoderKL."""
    vae = config.vae
    levels = len(vae.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": [vae.ch * mult for mult in vae.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": vae.in_channels,
        "latent_channels": vae.z_channels,
        "layers_per_block": vae.num_res_blocks,
        "norm_num_groups": vae.norm_groups,
        "out_channels": vae.out_ch,
        "sample_size": config.resolution,
        "scaling_factor": vae.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(text: TextConfig) -> Json:
    """Return the config of a CLIPTextModel; a last layer that is not read is not part of it."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": START_TOKEN,
        "eos_token_id": END_TOKEN,
        "hidden_act": "quick_gelu" if text.quick_gelu else "gelu",
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": text.context_length,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers - int(text.penultimate),
        "pad_token_id": text.pad_token,
        "projection_dim": text.width,
        "vocab_size": text.vocab_size,
    }


def schedule_json(schedule: ScheduleConfig) -> Json:
    """Return the config of a DDIMScheduler."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "beta_end": schedule.linear_end,
        "beta_schedule": "scaled_linear",
        "beta_start": schedule.linear_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.timesteps,
        "prediction_type": PREDICTIONS[schedule.parameterization],
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


INDEX: Json = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": VERSION,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def tokenizer_files(text: TextConfig) -> Mapping[str, Json | str]:
    """Return the files of a CLIPTokenizer by name: JSON, or text as it is."""
    bpe = tokenizer("hf")
    pad = (
        END if text.pad_token == END_TOKEN else next(t for t, n in bpe.encoder.items() if n == text.pad_token)
    )
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    by_number = {
        number: token for token, number in bpe.encoder.items()
    }  # the last spelling: the published one
    ranked = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.__getitem__)
    return {
        "vocab.json": {token: number for number, token in sorted(by_number.items())},
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ranked)]) + "\n",
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": text.context_length,
            "tokenizer_class": "CLIPTokenizer",
        },
    }
