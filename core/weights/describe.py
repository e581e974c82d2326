"""What a weight file is, in lines for people: kind, model, numbers, metadata, and what it is good for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.weights.checkpoint import FAMILY_CONFIGS
from core.weights.convert import CONTROL, TEXT, UNET, VAE
from core.weights.formats import TensorFile, TensorInfo, open_layers
from core.weights.recognise import FORMAT, CheckpointInfo, recognise
from core.weights.registry import size_text

SHOWN_CHARS = 200
EMA = "model_ema."
SECTIONS = {
    UNET: "UNet",
    VAE: "autoencoder",
    TEXT: "text encoder",
    CONTROL: "ControlNet",
    EMA: "averaged copy",
}

MODELS = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
TRANSFER = "python -m core.weights transfer {file} --from {base} --to OTHER OUT.safetensors"
ADVICE: dict[str, tuple[str, ...]] = {
    "base": (
        "Draw with it: python launch.py --model {file}",
        "Make a ControlNet to train of it: python -m core.weights add-control {file} OUT.safetensors",
    ),
    "full_control": (
        "Draw with both: python launch.py --model {file}",
        "Take the ControlNet alone: python -m core.weights extract {file} OUT.safetensors",
        f"Move it to another base model: {TRANSFER}",
    ),
    "control": (
        "Draw with it: put it into ckpts under a name that python -m core.weights list shows.",
        f"Move it to another base model: {TRANSFER}",
        "For diffusers: python -m core.weights convert {file} FOLDER",
    ),
    "control_variant": (
        "Draw with it: name it under controls in a model's YAML file, see docs/variants.md.",
    ),
    "diffusers_control": (
        "Write it in the original's layout: python -m core.weights convert {file} OUT.safetensors",
    ),
    "control_difference": (
        "Draw with it: put it into ckpts under a name that python -m core.weights list shows; it adds to "
        "whichever base model draws.",
        "Make a plain ControlNet of it: python -m core.weights transfer {file} --to BASE OUT.safetensors",
    ),
    "lora": ("Draw with it, at 80 %: python launch.py --lora {file}:0.8",),
    "diffusers_unet": (
        "Convert the folder that its folder lies in: python -m core.weights convert FOLDER OUT.safetensors",
    ),
    "vae": ("Draw with it: python launch.py --vae {file}",),
    "diffusers_vae": ("Draw with it: python launch.py --vae {file}",),
    "embedding": ("Use it in a prompt, by its name: see docs/prompts.md.",),
}
NOT_READ = ("This project does not use such files.",)
FOREIGN = ("This project draws with Stable Diffusion 1.x and 2.x only: this file fits neither.",)


def describe(path: Path) -> list[str]:
    """Return the lines that ``info`` prints.

    Raises:
        CheckpointMismatch: the file is missing, cut off, no checkpoint, or a pickle with code.
    """
    file = open_layers(path)
    info = recognise(file)
    pairs = [
        ("file", f"{path}, {size_text(path.stat().st_size)}"),
        ("is", info.title),
        ("base model", _base(info)),
        ("numbers", _numbers(file.tensors)),
        *_sections(file.tensors),
        *_metadata(file),
    ]
    lines = [f"{name + ':':15} {text}" for name, text in pairs if text]
    return lines + [f"{'use:':15} {line}" for line in advice(info)]


def advice(info: CheckpointInfo) -> list[str]:
    """Return what can be done with a file."""
    foreign = info.family == "sdxl"
    base = FAMILY_CONFIGS.get(info.family or "", info.family or "BASE")
    return [line.format(file=info.path, base=base) for line in (FOREIGN if foreign else _known(info))]


def _known(info: CheckpointInfo) -> tuple[str, ...]:
    return ADVICE.get(info.kind, NOT_READ)


def _base(info: CheckpointInfo) -> str:
    if info.family is None:
        return ""
    return MODELS.get(info.family, f"{info.family} (of this project)")


def _numbers(tensors: Mapping[str, TensorInfo]) -> str:
    count: Counter[str] = Counter()
    for tensor in tensors.values():
        count[str(tensor.dtype).removeprefix("torch.")] += tensor.count
    total = sum(count.values())
    shares = ", ".join(f"{n:,} {dtype}" for dtype, n in count.most_common())
    return f"{total:,} in {len(tensors):,} tensors: {shares}" if total else ""


def _sections(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    for prefix, title in SECTIONS.items():
        found = [tensor for key, tensor in tensors.items() if key.startswith(prefix)]
        if found:
            yield title, f"{sum(t.count for t in found):,}, {size_text(sum(t.nbytes for t in found))}"


def _metadata(file: TensorFile) -> Iterator[tuple[str, str]]:
    own = file.metadata.get("format") == FORMAT
    for key, value in sorted(file.metadata.items()):
        if own and key == "config":
            value = f"what the model is made of ({len(value.splitlines())} lines)"
        line = " ".join(value.split())
        cut = line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}... ({len(line):,} characters)"
        yield "metadata", f"{key} = {cut}"
    if file.other_keys:
        yield "beside them", ", ".join(file.other_keys[:8])
