"""Small networks with random weights, and their weights written in every published layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from core.config import ControlNetConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL

State = dict[str, Tensor]
CPU = torch.device("cpu")

# What published files carry beside the weights: a loader has to step over it.
BALLAST = ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef2", "logvar")


def tiny_config(family: str = "sd15") -> ModelConfig:
    """A config of the shape of SD 1.5 or 2.1 with small sizes."""
    old = family == "sd15"
    return ModelConfig(
        name=family,
        title=f"tiny {family}",
        weights=family,
        controls={"canny": "control_sd15_canny"} if old else {},
        unet=UNetConfig(
            model_channels=32,
            num_res_blocks=1 if old else 2,
            channel_mult=[1, 2, 2],
            attention_resolutions=[2, 1] if old else [4, 2],
            num_heads=2 if old else -1,
            num_head_channels=-1 if old else 16,
            context_dim=24,
            use_linear_in_transformer=not old,
        ),
        control=ControlNetConfig(hint_widths=[4, 8, 12, 16]),
        vae=VAEConfig(ch=32, ch_mult=[1, 2], num_res_blocks=1),
        text=TextConfig(
            width=24, heads=2, layers=2, vocab_size=40, context_length=7, layout="hf" if old else "open_clip"
        ),
    )


@dataclass
class Networks:
    """Networks of one config, every weight random: zero convolutions too, or nothing could be told apart."""

    config: ModelConfig
    unet: UNet
    vae: AutoencoderKL
    text: TextEncoder
    control: ControlNet


def make_networks(config: ModelConfig, seed: int = 0) -> Networks:
    generator = torch.Generator().manual_seed(seed)
    nets = Networks(
        config,
        UNet(config.unet),
        AutoencoderKL(config.vae),
        TextEncoder(config.text),
        ControlNet(config.unet, config.control),
    )
    for net in (nets.unet, nets.vae, nets.text, nets.control):
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return nets


def prefixed(net: nn.Module, prefix: str) -> State:
    return {prefix + key: value for key, value in net.state_dict().items()}


def hf_text(text: TextEncoder, prefix: str = "cond_stage_model.transformer.text_model.") -> State:
    """The text encoder as Hugging Face's CLIPTextModel names it."""
    state: State = {
        "embeddings.token_embedding.weight": text.token_embedding.weight.data,
        "embeddings.position_embedding.weight": text.positional_embedding.data,
        "embeddings.position_ids": torch.arange(text.config.context_length)[None],
        "final_layer_norm.weight": text.ln_final.weight.data,
        "final_layer_norm.bias": text.ln_final.bias.data,
    }
    blocks: Any = text.transformer.resblocks
    for n, block in enumerate(blocks):
        layer = f"encoder.layers.{n}."
        weights = block.attn.in_proj_weight.data.chunk(3)
        biases = block.attn.in_proj_bias.data.chunk(3)
        for letter, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{layer}self_attn.{letter}_proj.weight"] = weight.clone()
            state[f"{layer}self_attn.{letter}_proj.bias"] = bias.clone()
        pairs = {
            "self_attn.out_proj": block.attn.out_proj,
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }
        for name, module in pairs.items():
            state |= prefixed(module, f"{layer}{name}.")
    return {prefix + key: value for key, value in state.items()}


def base_state(nets: Networks) -> State:
    """UNet, autoencoder and text encoder under the published prefixes, with what else such files hold."""
    hf = nets.config.text.layout == "hf"
    text = hf_text(nets.text) if hf else prefixed(nets.text, "cond_stage_model.model.")
    if not hf:
        text["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
        text["cond_stage_model.model.text_projection"] = torch.zeros(4, 4)
    return {
        **{key: torch.zeros(10) for key in BALLAST},
        **prefixed(nets.unet, "model.diffusion_model."),
        **prefixed(nets.vae, "first_stage_model."),
        **text,
    }


def ema_state(nets: Networks) -> State:
    """The averaged copy that training leaves: the UNet's keys without dots, and two counters."""
    unet = nets.unet.state_dict()
    copies = {f"model_ema.diffusion_model{key.replace('.', '')}": value + 1 for key, value in unet.items()}
    return copies | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}


def diffusers_control(net: ControlNet) -> State:
    """A ControlNet in the diffusers layout, named by walking over its modules from their side."""
    state: State = {}

    def put(name: str, module: Any) -> None:
        state.update(prefixed(module, f"{name}."))

    def put_resnet(name: str, block: Any) -> None:
        put(f"{name}.norm1", block.in_layers[0])
        put(f"{name}.conv1", block.in_layers[2])
        put(f"{name}.time_emb_proj", block.emb_layers[1])
        put(f"{name}.norm2", block.out_layers[0])
        put(f"{name}.conv2", block.out_layers[3])
        put(f"{name}.conv_shortcut", block.skip_connection)

    put("time_embedding.linear_1", net.time_embed[0])
    put("time_embedding.linear_2", net.time_embed[2])
    convolutions = [layer for layer in net.input_hint_block if isinstance(layer, nn.Conv2d)]
    put("controlnet_cond_embedding.conv_in", convolutions[0])
    put("controlnet_cond_embedding.conv_out", convolutions[-1])
    for n, layer in enumerate(convolutions[1:-1]):
        put(f"controlnet_cond_embedding.blocks.{n}", layer)
    blocks: Iterator[Any] = iter(net.input_blocks)
    put("conv_in", next(blocks)[0])
    for level in range(len(net.config.channel_mult)):
        for n in range(net.config.num_res_blocks):
            resnet, *attention = next(blocks)
            put_resnet(f"down_blocks.{level}.resnets.{n}", resnet)
            if attention:
                put(f"down_blocks.{level}.attentions.{n}", attention[0])
        if level + 1 < len(net.config.channel_mult):
            put(f"down_blocks.{level}.downsamplers.0.conv", next(blocks)[0].op)
    put_resnet("mid_block.resnets.0", net.middle_block[0])
    put("mid_block.attentions.0", net.middle_block[1])
    put_resnet("mid_block.resnets.1", net.middle_block[2])
    zero_convs: Any = net.zero_convs
    for n, conv in enumerate(zero_convs):
        put(f"controlnet_down_blocks.{n}", conv[0])
    put("controlnet_mid_block", net.middle_block_out[0])
    return state


def difference_control(net: ControlNet, unet: UNet) -> State:
    """A ControlNet as its difference to the UNet, with the key that marks such a file."""
    base = unet.state_dict()
    state = {key: value - base[key] if key in base else value for key, value in net.state_dict().items()}
    return {**state, "difference": torch.tensor(1.0)}


def own(config: ModelConfig) -> dict[str, str]:
    """The metadata by which a file of this project names its model."""
    return {"format": "controlnet-suite", "config": OmegaConf.to_yaml(OmegaConf.structured(config))}


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def write(
    path: Path, state: Mapping[str, Tensor], wrappers: int = 0, metadata: dict[str, str] | None = None
) -> Path:
    """Write a .safetensors file or, by the suffix, a pickle in so many ``state_dict`` wrappers."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=metadata)
        return path
    content: object = dict(state)
    for _ in range(wrappers):
        content = {"state_dict": content, "epoch": 3, "global_step": 100}
    torch.save(content, path)
    return path


def assert_same(
    net: nn.Module, expected: nn.Module, dtype: torch.dtype = torch.float32, via: torch.dtype | None = None
) -> None:
    """Every tensor of ``net`` is ``expected``'s, cast by way of ``via`` (the file's dtype), bit for bit."""
    got, want = net.state_dict(), expected.state_dict()
    assert list(got) == list(want)
    for key, value in want.items():
        target = value.to(via or value.dtype).to(dtype) if value.is_floating_point() else value
        assert got[key].dtype == target.dtype and torch.equal(got[key], target), key
