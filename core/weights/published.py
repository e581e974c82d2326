"""The original's single-file layout, written: which keys it has, and values for those that a file lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from core.config import ModelConfig, config_names, load_config, parse_config
from core.errors import CheckpointMismatch
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.sampling.schedule import Schedule
from core.weights.checkpoint import (
    FAMILY_CONFIGS,
    BaseNetworks,
    Plan,
    check_plan,
    plan_base,
)
from core.weights.convert import HF_TEXT, TEXT, UNET, VAE, hf_text_keys
from core.weights.formats import TensorFile
from core.weights.parts import Part
from core.weights.prediction import predicted
from core.weights.recognise import FORMAT, recognise
from core.weights.writing import Entry, constant

POSITIONS = HF_TEXT + "text_model.embeddings.position_ids"
UNUSED_TEXT = (TEXT + "model.text_projection", TEXT + "model.logit_scale")  # of open_clip's files


def config_of(file: TensorFile) -> ModelConfig:
    """Return the config of the model that a file belongs to: its own, or its family's with what it predicts.

    Raises:
        CheckpointMismatch: the file belongs to no model that is known here; says what it seems to be.
    """
    info = recognise(file)
    if info.model_config is not None:
        return parse_config(info.model_config, file.path)
    name = FAMILY_CONFIGS.get(info.family or "", info.family)
    if name not in config_names():
        raise CheckpointMismatch(
            f"{file.path} seems to be {info.title}: give a file for Stable Diffusion 1.x or 2.x, or of this "
            "project."
        )
    config = load_config(name)
    told = predicted(file, info.family) or config.schedule.parameterization
    return replace(config, schedule=replace(config.schedule, parameterization=told))


def own_metadata(file: TensorFile) -> dict[str, str]:
    """Return what a file of this project tells of its model, to be passed on."""
    kept = {key: file.metadata[key] for key in ("format", "config") if key in file.metadata}
    return kept if kept.get("format") == FORMAT else {}


@dataclass(frozen=True, slots=True)
class BaseParts:
    """The networks of a base model in a file."""

    config: ModelConfig
    unet: Part
    vae: Part
    text: Part

    @property
    def file(self) -> TensorFile:
        """The file that holds them."""
        return self.unet.file


def open_base(config: ModelConfig, file: TensorFile, *, whole: bool = True) -> BaseParts:
    """Find a base model's networks in a file; unless ``whole``, its autoencoder may be missing.

    Raises:
        CheckpointMismatch: it holds no such model; names it, what it seems to be, and keys.
    """
    with torch.device("meta"):
        networks = BaseNetworks(UNet(config.unet), AutoencoderKL(config.vae), TextEncoder(config.text))
    plans = plan_base(config, networks, file.tensors)
    needed = [plan for name, plan in plans.items() if whole or name != "vae"]
    check_plan(file, config, "a base model", [config.weights], Plan.joined(needed))
    parts = {
        name: Part(file, plan.sources, getattr(networks, name).state_dict()) for name, plan in plans.items()
    }
    return BaseParts(config, parts["unet"], parts["vae"], parts["text"])


def part_entries(part: Part, prefix: str) -> dict[str, Entry]:
    """Return what there is of a network, under its own names behind ``prefix``."""
    return {prefix + name: entry(part, name) for name in part}


def entry(part: Part, name: str) -> Entry:
    """Return one tensor of a network as it is in its file."""
    return Entry(part.info(name), lambda: part.read(name))


def base_entries(base: BaseParts, *, filled: bool = True) -> dict[str, Entry]:
    """Return every tensor that a published base model has, whatever the file calls it.

    Tables that the file lacks and that follow from the config are added, unless ``filled`` is off.
    """
    text, config = base.text, base.config
    entries = {**part_entries(base.unet, UNET), **part_entries(base.vae, VAE)}
    entries |= part_entries(text, TEXT + "model.") if config.text.layout == "open_clip" else _hf_entries(text)
    tables = schedule_buffers(config)
    if config.text.layout == "hf":
        tables[POSITIONS] = torch.arange(config.text.context_length)[None]
    for key in (*UNUSED_TEXT, *tables):
        if key in base.file.tensors:
            entries[key] = as_stored(base.file, key)
        elif filled and key in tables:
            entries[key] = constant(tables[key])
    return entries


def _hf_entries(text: Part) -> dict[str, Entry]:
    names = [(hf_text_keys(name), text.sources[name]) for name in text]
    pairs = [pair for theirs, keys in names for pair in zip(theirs, keys, strict=True)]
    return {f"{HF_TEXT}text_model.{theirs}": as_stored(text.file, key) for theirs, key in pairs}


def as_stored(file: TensorFile, key: str) -> Entry:
    """Return one of a file's tensors as it is."""
    return Entry(file.tensors[key], lambda: file.read(key))


def schedule_buffers(config: ModelConfig) -> dict[str, Tensor]:
    """Return the float32 tables that the original's model keeps beside its weights, by their keys."""
    schedule = Schedule(config.schedule)
    betas, alphas = schedule.betas, schedule.alphas_cumprod
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
        "logvar": np.zeros_like(betas),
    }
    return {key: torch.from_numpy(table.astype(np.float32)) for key, table in tables.items()}
