"""What a model is made of, as data: one YAML file a model, checked field by field when it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_DIR = Path(__file__).parent / "configs"
PARAMETERIZATIONS = ("eps", "v")
CONTROL_VARIANTS = ("full", "lite", "mlp", "precomputed")


class ConfigError(ValueError):
    """A model's YAML file holds an unknown key, a wrong type or an impossible value."""


@dataclass
class UNetConfig:
    """Sizes of the diffusion UNet, in the published YAML's own words.

    ``attention_resolutions`` are downsampling factors at which transformers stand. Exactly one of
    ``num_heads`` (the same number at every level) and ``num_head_channels`` (the same size at every level)
    is positive. ``level_res_blocks``, where given, takes the place of ``num_res_blocks``: one number for each
    level, the finest first.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = MISSING
    num_res_blocks: int = MISSING
    channel_mult: list[int] = MISSING
    attention_resolutions: list[int] = MISSING
    num_heads: int = -1
    num_head_channels: int = -1
    transformer_depth: int = 1
    context_dim: int = MISSING
    use_linear_in_transformer: bool = False
    level_res_blocks: list[int] | None = None

    @property
    def res_blocks(self) -> tuple[int, ...]:
        """How many residual blocks the encoder has at each level, the finest first; the decoder one more."""
        return tuple(self.level_res_blocks or [self.num_res_blocks] * len(self.channel_mult))


@dataclass
class ControlNetConfig:
    """What a ControlNet has beyond the UNet's encoder.

    ``guess_depth`` is the index of the residual that guess mode leaves whole; those before it count less. The
    original counts from 12 whatever the network's depth. ``variant`` is one of CONTROL_VARIANTS: the
    trainable copy ("full"), or one of the networks that look at neither x_t nor t.
    """

    hint_channels: int = 3
    guess_depth: int = 12
    hint_widths: list[int] = field(default_factory=lambda: [16, 32, 96, 256])
    variant: str = "full"


@dataclass
class VAEConfig:
    """Sizes of the autoencoder. ``scale_factor`` brings latents to about unit variance."""

    ch: int = 128
    ch_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    in_channels: int = 3
    out_ch: int = 3
    norm_groups: int = 32
    scale_factor: float = 0.18215


@dataclass
class TextConfig:
    """Sizes of the text transformer and how its output is read.

    ``clip_skip`` counts the layers from the end: 1 reads the last, 2 the one before it, always through the
    final LayerNorm; 0 is the model's own, the last or with ``penultimate`` the one before it.

    ``layout`` names the published keys: "hf" (``transformer.text_model.*``) or "open_clip" (``model.*``).
    ``repeat_prompt`` fills the context with the prompt again and again, not with padding, so that every
    place holds a word. ``kept_tokens`` above 0 means that the embedding has rows only for that many listed
    tokens, plus one for all others.
    """

    width: int = MISSING
    heads: int = MISSING
    layers: int = MISSING
    quick_gelu: bool = False
    penultimate: bool = False
    clip_skip: int = 0
    pad_token: int = 0
    repeat_prompt: bool = False
    context_length: int = 77
    vocab_size: int = 49408
    kept_tokens: int = 0
    layout: str = "open_clip"

    @property
    def layers_left_out(self) -> int:
        """How many layers at the end are not computed."""
        return (self.clip_skip or (2 if self.penultimate else 1)) - 1


@dataclass
class ScheduleConfig:
    """The noise schedule: betas are evenly spaced squares, from ``linear_start`` to ``linear_end``."""

    timesteps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.012
    parameterization: str = "eps"


@dataclass
class ModelConfig:
    """One base model and the ControlNets that fit it.

    ``weights`` and the values of ``controls`` are names in ckpts/registry.yaml. ``resolution`` is the short
    side, in pixels, that the model was trained at; ``cfg_scale`` is the guidance scale that the page starts
    with. ``pooled_controls`` say of the whole picture what they say: each residual's mean over the pixels
    counts, and that for the prompt alone. ``masked_controls`` see -1 where a request's mask says to repaint.
    """

    name: str = MISSING
    title: str = MISSING
    resolution: int = 512
    cfg_scale: float = 9.0
    weights: str = MISSING
    controls: dict[str, str] = field(default_factory=dict)
    pooled_controls: list[str] = field(default_factory=list)
    masked_controls: list[str] = field(default_factory=list)
    unet: UNetConfig = field(default_factory=UNetConfig)
    control: ControlNetConfig = field(default_factory=ControlNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def config_names() -> list[str]:
    """Return the names that ``load_config`` takes, beside paths."""
    return sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))


def load_config(name_or_path: str | Path) -> ModelConfig:
    """Read a model's YAML file: a name in core/configs ("sd15") or a path.

    Raises:
        ConfigError: names the file and the unknown key, missing key, wrong type or impossible value.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = CONFIG_DIR / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{name_or_path}: no such model. Give one of {', '.join(config_names())}, or a YAML path."
        )
    return _parsed(OmegaConf.load, path, path)


def parse_config(text: str, source: Path) -> ModelConfig:
    """Read a model's YAML text, as files that are trained here carry it; ``source`` is that file.

    Raises:
        ConfigError: as ``load_config``.
    """
    return _parsed(OmegaConf.create, text, source)


def _parsed(read: Callable[[Any], Any], content: Path | str, source: Path) -> ModelConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), read(content))
        config = cast(ModelConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key = f" at '{error.full_key}'" if getattr(error, "full_key", None) else ""
        raise ConfigError(f"{source}{key}: {str(error).splitlines()[0]}. Correct the file.") from error
    _check(config, source)
    return config


def with_variant(config: ModelConfig, variant: str) -> ModelConfig:
    """Return ``config`` for ControlNets of another variant.

    Raises:
        ValueError: there is no such variant; names the choices.
    """
    if variant not in CONTROL_VARIANTS:
        raise ValueError(_no_variant(variant))
    return replace(config, control=replace(config.control, variant=variant))


def _no_variant(variant: str) -> str:
    return f"variant is {variant!r}: give one of {', '.join(CONTROL_VARIANTS)}."


def _check(config: ModelConfig, path: Path) -> None:
    unet, text = config.unet, config.text
    if (unet.num_heads > 0) == (unet.num_head_channels > 0):
        raise ConfigError(f"{path}: give exactly one of unet.num_heads and unet.num_head_channels.")
    if len(unet.res_blocks) != len(unet.channel_mult) or min(unet.res_blocks) < 1:
        raise ConfigError(
            f"{path}: unet.level_res_blocks is {unet.level_res_blocks}: give {len(unet.channel_mult)} "
            "numbers above 0, one for each of unet.channel_mult."
        )
    if config.schedule.parameterization not in PARAMETERIZATIONS:
        raise ConfigError(
            f"{path}: schedule.parameterization is {config.schedule.parameterization!r}: "
            f"give one of {', '.join(PARAMETERIZATIONS)}."
        )
    if config.control.variant not in CONTROL_VARIANTS:
        raise ConfigError(f"{path}: control.{_no_variant(config.control.variant)}")
    if text.layout not in {"hf", "open_clip"}:
        raise ConfigError(f"{path}: text.layout is {text.layout!r}: give hf or open_clip.")
    if text.width != unet.context_dim:
        raise ConfigError(f"{path}: text.width is {text.width} but unet.context_dim is {unet.context_dim}.")
    if not 0 <= text.clip_skip <= text.layers:
        raise ConfigError(f"{path}: text.clip_skip is {text.clip_skip}: give 0 to {text.layers}.")
    strangers = [c for c in (*config.pooled_controls, *config.masked_controls) if c not in config.controls]
    if strangers:
        raise ConfigError(f"{path}: {strangers[0]!r} is not among the controls: name it there too.")
    if config.vae.embed_dim != unet.in_channels:
        raise ConfigError(
            f"{path}: vae.embed_dim is {config.vae.embed_dim}, unet.in_channels {unet.in_channels}."
        )
