"""To the diffusers layout and back: every number as it is, under other names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from core.config import ModelConfig, TextConfig, load_config, parse_config
from core.errors import CheckpointMismatch
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.weights import diffusers_configs as configs
from core.weights.checkpoint import check_plan, open_control, plan_sources
from core.weights.convert import CONTROL, TEXT, diffusers_key, hf_text_keys, is_difference
from core.weights.diffusers_names import unet_key, vae_key
from core.weights.formats import TensorFile, TensorInfo, open_layers, open_tensors
from core.weights.parts import Part
from core.weights.published import (
    BaseParts,
    base_entries,
    config_of,
    entry,
    open_base,
    own_metadata,
    part_entries,
)
from core.weights.recognise import FORMAT, control_title, recognise
from core.weights.vae_file import DIFFUSERS_FILE, open_vae
from core.weights.writing import Entry, WriteError, check_output, constant, write_tensors

Entries = dict[str, Entry]
OWN = "controlnet-suite"  # in the metadata: the config of a model of this project
WEIGHTS = (
    DIFFUSERS_FILE,
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
)


def to_diffusers(
    path: Path, out: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False
) -> list[str]:
    """Write a file's networks as a folder that diffusers loads; return the names of what was left out.

    A ControlNet or an autoencoder becomes the folder itself; a base model becomes one with unet, vae,
    text_encoder and so on in it, and with controlnet where the file holds that too.

    Raises:
        ValueError: ``out`` is there already.
        CheckpointMismatch: the file holds nothing of the kind.
        WriteError: the disk is full; nothing is left.
    """
    check_output(out, overwrite=overwrite, suffix="")
    file = open_layers(path)
    info, config = recognise(file), _config_of(file)
    metadata = {"format": "pt"} | ({OWN: info.model_config} if info.model_config else {})
    left_out: list[str] = []
    with _new_folder(out) as folder:

        def save(
            name: str, description: configs.Json, entries: Entries, weights: str = DIFFUSERS_FILE
        ) -> None:
            (folder / name).mkdir(exist_ok=True)
            _write_json(folder / name / "config.json", description)
            cast = {key: value.cast(dtype) for key, value in entries.items()}
            write_tensors(folder / name / weights, cast, metadata)

        if info.has_base:
            left_out = _save_base(open_base(config, file), folder, save)
        if info.has_control:
            inside = "controlnet" if info.has_base else "."
            save(inside, configs.control_json(config), _control_entries(config, path))
        elif not info.has_base:
            save(".", configs.vae_json(config), _vae_entries(config, open_vae(config, path)))
    return left_out


def _config_of(file: TensorFile) -> ModelConfig:
    info = recognise(file)
    if is_difference(file.tensors):
        raise CheckpointMismatch(
            f"{file.path} is a difference: add it to its base model first, with python -m core.weights "
            "transfer."
        )
    return load_config("sd15") if info.kind == "vae" and info.model_config is None else config_of(file)


def _save_base(base: BaseParts, folder: Path, save: Callable[..., None]) -> list[str]:
    config = base.config
    unet = {unet_key(name, config.unet): entry(base.unet, name) for name in base.unet}
    save("unet", configs.unet_json(config), unet)
    save("vae", configs.vae_json(config), _vae_entries(config, base.vae))
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", configs.schedule_json(config.schedule))
    if config.text.kept_tokens:
        return ["the text encoder, which reads a vocabulary of its own"]
    save(
        "text_encoder",
        configs.text_json(config.text),
        _text_entries(base.text, config.text),
        "model.safetensors",
    )
    (folder / "tokenizer").mkdir()
    for name, content in configs.tokenizer_files(config.text).items():
        _write_json(folder / "tokenizer" / name, content)
    _write_json(folder / "model_index.json", configs.INDEX)
    return []


def _control_entries(config: ModelConfig, path: Path) -> Entries:
    _, part = open_control(config, path)
    if config.control.variant != "full":
        raise CheckpointMismatch(
            f"{path} holds {control_title(config.control.variant)}, a network that diffusers does not have: "
            "it stays as it is. Give a full ControlNet."
        )
    if config.unet.level_res_blocks:
        raise CheckpointMismatch(
            f"{path} has {config.unet.level_res_blocks} residual blocks at its levels, and diffusers' "
            "ControlNets have as many at each: it stays as it is."
        )
    return {diffusers_key(name, config.unet, config.control): entry(part, name) for name in part}


def _vae_entries(config: ModelConfig, part: Part) -> Entries:
    """Name an autoencoder's tensors; their attention is made of Linears, ours of 1x1 convolutions."""
    entries = {}
    for name in part:
        value = entry(part, name)
        if ".attn_1." in name and len(value.info.shape) == 4:
            value = _reshaped(value, value.info.shape[:2])
        entries[vae_key(name, config.vae)] = value
    return entries


def _reshaped(value: Entry, shape: tuple[int, ...]) -> Entry:
    return Entry(TensorInfo(shape, value.info.dtype), lambda: value.make().reshape(shape))


def _text_entries(part: Part, text: TextConfig) -> Entries:
    """Name a text encoder's tensors, queries, keys and values apart."""
    entries = {}
    for name in part:
        if name.startswith(_unread(text)):
            continue
        theirs = hf_text_keys(name)
        for n, key in enumerate(theirs):
            entries[f"text_model.{key}"] = _rows(entry(part, name), n, len(theirs))
    return entries


def _unread(text: TextConfig) -> tuple[str, ...]:
    """Return the beginning of the names of a last layer that is not read."""
    return (f"transformer.resblocks.{text.layers - 1}.",) if text.penultimate else ()


def _rows(value: Entry, n: int, parts: int) -> Entry:
    count = value.info.shape[0] // parts
    info = TensorInfo((count, *value.info.shape[1:]), value.info.dtype)
    return Entry(info, lambda: value.make()[n * count : (n + 1) * count])


def _write_json(path: Path, content: configs.Json | str) -> None:
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Make a folder that becomes ``out``, in the place of what is there, once it is whole."""
    part, old = (out.absolute().with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        part.mkdir()
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
    except WriteError as error:
        raise WriteError(str(error).replace(str(part), str(out))) from error
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise WriteError(
            f"{out} could not be written ({error.strerror or error}): make room, or give a name in another "
            "folder. Nothing is left of it."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def from_diffusers(
    path: Path, out: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False
) -> int:
    """Write a folder or a file of the diffusers layout as one file of the original's; return its bytes.

    Raises:
        ValueError: ``out`` cannot be written.
        CheckpointMismatch: there is no ControlNet, autoencoder or base model in that layout.
    """
    check_output(out, overwrite=overwrite)
    if path.is_dir() and (path / "unet").is_dir():
        entries, file = _read_base(path)
    else:
        entries, file = _read_network(path)
    cast = {key: value.cast(dtype) for key, value in entries.items()}
    return write_tensors(out, cast, _own_metadata(file), overwrite=overwrite)


def _read_network(path: Path) -> tuple[Entries, TensorFile]:
    file = open_tensors(_weights_in(path))
    kind = recognise(file).kind
    config = _found_config(file)
    if kind == "diffusers_control":
        _, part = open_control(config, file.path)
        return part_entries(part, CONTROL), file
    if kind == "diffusers_vae":
        return part_entries(open_vae(config, file.path), ""), file
    raise CheckpointMismatch(
        f"{file.path} seems to be {recognise(file).title}: give a ControlNet, an autoencoder or a whole "
        "folder of the diffusers layout; or, to write that layout, an OUT without .safetensors."
    )


def _read_base(folder: Path) -> tuple[Entries, TensorFile]:
    file = open_tensors(_weights_in(folder / "unet"))
    config = _found_config(file)
    with torch.device("meta"):
        wanted = UNet(config.unet).state_dict()
        text = TextEncoder(config.text).state_dict()
    named = _read_part(file, config, wanted, {key: (unet_key(key, config.unet),) for key in wanted})
    texts = open_tensors(_weights_in(folder / "text_encoder"))
    prefix = "text_model." if any(key.startswith("text_model.") for key in texts.tensors) else ""
    read = {key: value for key, value in text.items() if not key.startswith(_unread(config.text) or ("-",))}
    sources = {key: tuple(prefix + theirs for theirs in hf_text_keys(key)) for key in read}
    parts = BaseParts(
        config, named, open_vae(config, _weights_in(folder / "vae")), _read_part(texts, config, read, sources)
    )
    unread = {TEXT + "model." + key: torch.zeros(text[key].shape) for key in text.keys() - read.keys()}
    return base_entries(parts) | {key: constant(value) for key, value in unread.items()}, file


def _read_part(
    file: TensorFile, config: ModelConfig, wanted: Mapping[str, Tensor], sources: dict[str, tuple[str, ...]]
) -> Part:
    plan = plan_sources(wanted, sources, file.tensors)
    check_plan(file, config, "a base model in the diffusers layout", [], plan)
    return Part(file, plan.sources, wanted)


def _weights_in(path: Path) -> Path:
    """Return the weights' file in one network's folder; a file is taken as it is."""
    if not path.is_dir():
        return path
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointMismatch(
            f"{path}: none of {', '.join(WEIGHTS)} is there. Give a folder of diffusers."
        )
    return found


def _found_config(file: TensorFile) -> ModelConfig:
    """Return the config of a file in the diffusers layout: its own, or that of its family."""
    if OWN in file.metadata:
        return parse_config(file.metadata[OWN], file.path)
    info = recognise(file)
    if info.kind == "diffusers_vae":
        return load_config("sd15")  # whose autoencoder is that of 2.1 too
    return config_of(file)


def _own_metadata(file: TensorFile) -> dict[str, str]:
    own = file.metadata.get(OWN)
    return {"format": FORMAT, "config": own} if own else own_metadata(file)
