"""Make a pipeline from a model's name, a YAML file or a checkpoint file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from core.additions import Lora
from core.config import PARAMETERIZATIONS, ModelConfig, config_names, load_config
from core.errors import CheckpointMismatch, WeightsMissing
from core.models.controlnet import ControlNet
from core.models.variants import AnyControlNet
from core.pipeline import ControlNetPipeline
from core.request import check_number
from core.runtime.compiling import can_compile, compile_network
from core.runtime.control_cache import DEFAULT_BUDGET
from core.runtime.device import keep_float32, resolve_device, resolve_dtype, resolve_vae_dtype
from core.weights.checkpoint import inspect_checkpoint, load_base, load_control
from core.weights.formats import open_tensors
from core.weights.mixing import LoraMixer
from core.weights.prediction import predicted
from core.weights.vae_file import open_vae

log = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pth", ".pt", ".bin"})
FAMILY_CONFIGS = {"sd1": "sd15", "sd2": "sd21"}
# Published models of the same shapes that differ in what their UNets predict.
SISTERS = {("sd21", "v"): "sd21_768", ("sd21_768", "eps"): "sd21"}
CONTROL_PREFIXES = ("control_sd15_", "control_sd21_", "control_")


class Locator(Protocol):
    """What ``load_pipeline`` needs of a weights registry."""

    def locate(self, name: str) -> Path:
        """Return the path of the weights called ``name``; raise ``WeightsMissing`` where there are none."""
        ...


@dataclass(frozen=True)
class Source:
    """A model's config and where its weights are: the base's file, and each ControlNet's by a function."""

    config: ModelConfig
    base: Path
    locate_control: Callable[[str], Path]
    controls: tuple[str, ...] = field(default=())


def load_pipeline(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    low_vram: bool = False,
    registry: Locator | None = None,
    max_controls: int = DEFAULT_BUDGET,
    clip_skip: int | None = None,
    embeddings: Path | None = None,
    loras: Sequence[str | Path | Lora] = (),
    vae: str | Path | None = None,
    transfer_from: str | Path | None = None,
    strips: bool | None = None,
    parameterization: str | None = None,
    graphs: bool | None = None,
    compile: bool = False,
    vae_dtype: str = "auto",
) -> ControlNetPipeline:
    """Load a base model; its ControlNets are loaded when first used.

    Args:
        name_or_path: "demo", "sd15", "sd21", "sd21_768"; or a model's YAML file; or a checkpoint
            (.safetensors, .ckpt, .pth) of Stable Diffusion 1.x or 2.x, or of this project. One that holds a
            ControlNet too, such as control_sd15_canny.pth, brings that with it.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, float16 or bfloat16.
        low_vram: keep only the networks in use on the device; on a CPU in float32, no weights that take more
            memory than the file's.
        registry: finds weight files by name; by default ckpts/registry.yaml.
        max_controls: how many ControlNets stay in memory.
        clip_skip: which layer of the text encoder is read, counted from the end; by default the model's own.
        embeddings: the folder of textual-inversion files, used by their names; by default ckpts/embeddings.
        loras: LoRA files to put on the base model, each "FILE" or "FILE:WEIGHT"; see also ``set_loras``.
        vae: a file with another autoencoder, to draw with that.
        transfer_from: the base model, by name or file, that the ControlNets were trained on: moves each from
            there to this one, as `python -m core.weights transfer` does. One that comes in the checkpoint
            itself stays.
        strips: whether to decode strip by strip; by default with low_vram, and where a side is above 1024 px.
        parameterization: "eps" or "v", what the UNet predicts; by default as the config or, of a checkpoint,
            the file itself tells.
        graphs: whether to record steps as CUDA graphs and replay them, with the same result; by default on a
            CUDA device, without low_vram.
        compile: whether to compile UNet and ControlNets with torch.compile: the first picture of every size
            then takes minutes. Where there is no compiler all runs as without.
        vae_dtype: auto, float32, float16 or bfloat16: the autoencoder's number format.

    Raises:
        ValueError: there is no such model, device, dtype, layer, folder or parameterization, or there can be
            no graphs.
        WeightsMissing: the base model's weights are not on this machine.
        CheckpointMismatch: a file holds something else.
    """
    target = resolve_device(device)
    number = resolve_dtype(dtype, target)
    vae_number = resolve_vae_dtype(vae_dtype, number, target)
    keep_float32(target, number)
    registry = _default_registry() if registry is None else registry
    source = find_source(name_or_path, registry)
    if parameterization is not None:
        source = replace(source, config=predicting(source.config, parameterization))
    if clip_skip is not None:
        source = replace(source, config=_skipping(source.config, clip_skip))
    rest = torch.device("cpu") if low_vram else target
    log.info("Loading %s from %s (%s, %s).", source.config.title, source.base, target, number)
    autoencoder = None if vae is None else open_vae(source.config, Path(vae))
    trained_on = None if transfer_from is None else _find_base(transfer_from, registry)
    compiled = compile and can_compile(target)
    # Packed weights could not be moved, nor could compiled code read them. In float32 they take more memory.
    pack = target.type == "cpu" and not compiled and not (low_vram and number == torch.float32)
    base = load_base(
        source.config,
        source.base,
        device=rest,
        dtype=number,
        vae=autoencoder,
        vae_dtype=vae_number,
        pack=pack,
    )
    if compiled:
        compile_network(base.unet)
    mixer = LoraMixer(source.config, source.base, base)
    mixer.set([Lora.parse(lora) for lora in loras])
    return ControlNetPipeline(
        source.config,
        base,
        lambda name: _load_control(source, name, rest, number, trained_on, pack=pack, compiled=compiled),
        locate_control=source.locate_control,
        controls=source.controls,
        device=target,
        low_vram=low_vram,
        max_controls=max_controls,
        embeddings=embeddings,
        mixer=mixer,
        vae=None if vae is None else Path(vae).name,
        transfer_from=None if trained_on is None else trained_on.name,
        strips=strips,
        graphs=graphs,
        vae_number=vae_number,
    )


def _skipping(config: ModelConfig, clip_skip: int) -> ModelConfig:
    check_number("clip_skip", clip_skip, 1, config.text.layers, integer=True)
    return replace(config, text=replace(config.text, clip_skip=int(clip_skip)))


def predicting(config: ModelConfig, parameterization: str) -> ModelConfig:
    """Return the config of the same model whose UNet predicts "eps" or "v".

    Raises:
        ValueError: neither of these.
    """
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(
            f"parameterization is {parameterization!r}: give one of {', '.join(PARAMETERIZATIONS)}."
        )
    if parameterization == config.schedule.parameterization:
        return config
    if (config.name, parameterization) in SISTERS:
        return load_config(SISTERS[config.name, parameterization])
    return replace(config, schedule=replace(config.schedule, parameterization=parameterization))


def _default_registry() -> Locator:
    from core.weights.registry import Registry

    return Registry.load()


def _load_control(
    source: Source,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    trained_on: Path | None,
    *,
    pack: bool,
    compiled: bool,
) -> AnyControlNet:
    path, base = source.locate_control(name), source.base
    if trained_on is not None and (path == base or trained_on.samefile(base)):
        trained_on = None  # it grew from this very model
    net = load_control(
        source.config, path, device=device, dtype=dtype, base=base, trained_on=trained_on, pack=pack
    )
    if compiled and isinstance(net, ControlNet):  # the others compute once a request
        compile_network(net)
    return net


def find_source(name_or_path: str | Path, registry: Locator | None = None) -> Source:
    """Find a model's config and files; the arguments and errors are those of ``load_pipeline``."""
    registry = _default_registry() if registry is None else registry
    path = Path(name_or_path)
    if path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return _from_checkpoint(path, registry)
    config = load_config(name_or_path)
    folder = path.parent if path.suffix else None

    def locate(weights: str) -> Path:
        # Beside one's own YAML file, weights may be given as a path.
        beside = folder / weights if folder is not None else None
        return beside if beside is not None and beside.is_file() else registry.locate(weights)

    return Source(
        config, locate(config.weights), lambda name: locate(config.controls[name]), tuple(config.controls)
    )


def _find_base(name_or_path: str | Path, registry: Locator) -> Path:
    """Return the file of a base model that is not drawn with."""
    path = Path(name_or_path)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        return registry.locate(load_config(name_or_path).weights)
    if not path.is_file():
        raise WeightsMissing(
            f"{path}: no such file. Give the base model that the ControlNets were trained on, such as sd15."
        )
    return path


def _from_checkpoint(path: Path, registry: Locator) -> Source:
    if not path.is_file():
        raise WeightsMissing(
            f"{path}: no such file. Give the path of a checkpoint, or one of {', '.join(config_names())}."
        )
    info = inspect_checkpoint(path)
    model = FAMILY_CONFIGS.get(info.family or "", info.family)
    if model not in config_names():
        raise CheckpointMismatch(
            f"{path} seems to be {info.title}: give a checkpoint of Stable Diffusion 1.x or 2.x, or one of "
            f"{', '.join(config_names())}."
        )
    config = load_config(model)
    told = predicted(open_tensors(path), info.family)
    if told is not None and info.family in FAMILY_CONFIGS:
        config = predicting(config, told)
    files: dict[str, Path] = {}
    if info.has_base and info.has_control:
        files[own_control_name(path, config)] = path
    names = tuple(dict.fromkeys([*files, *config.controls]))
    return Source(
        config, path, lambda n: files[n] if n in files else registry.locate(config.controls[n]), names
    )


def own_control_name(path: Path, config: ModelConfig) -> str:
    """Return the name of a full checkpoint's own ControlNet: the config's for it, else the file's."""
    by_weights = {weights: name for name, weights in config.controls.items()}
    if path.stem in by_weights:
        return by_weights[path.stem]
    for prefix in CONTROL_PREFIXES:
        if path.stem.startswith(prefix):
            return path.stem.removeprefix(prefix)
    return path.stem
