"""Tell from its tensors' names and shapes what a checkpoint file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import CONTROL_VARIANTS
from core.errors import CheckpointMismatch
from core.weights.convert import CONTROL, DIFFUSERS_CONTROL, TEXT, UNET, VAE, is_difference
from core.weights.formats import TensorFile, TensorInfo

FORMAT = "controlnet-suite"  # in the metadata of the files that this project trains
FAMILIES = {768: ("sd1", "Stable Diffusion 1.x"), 1024: ("sd2", "Stable Diffusion 2.x")}
FAMILIES |= {2048: ("sdxl", "SDXL"), 1280: ("sdxl", "SDXL (refiner)")}
LORA_READS = re.compile(
    r".*attn2[._](processor\.)?to_k(\.lora_down|\.lora_A|\.lora\.down|_lora\.down)\.weight"
    r"|(lora_te_|text_encoder\.).*self_attn[._]q_proj(\.lora_down|\.lora_A|[._]lora(_linear_layer)?\.down)\.weight"
)
SECOND_TEXT = ("lora_te2_", "text_encoder_2.")  # only SDXL's
LORA = re.compile(r"\.lora_(down|up|A|B)\.|\.lora\.(down|up)\.|^lora_(unet|te\d?)_")
SD = ("sd1", "sd2")
VARIANT = re.compile(r"^control:\n(?: +.*\n)*? +variant: *(\S+)", re.MULTILINE)  # in a file's own config
INPUTS = {9: " for inpainting", 8: " for editing by instruction (pix2pix)", 5: " with depth input"}

# (kind, what it is, beginnings of keys that must all occur); the first that fits is taken.
MARKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("embedding", "a textual inversion embedding", ("emb_params",)),
    ("embedding", "a textual inversion embedding", ("*",)),  # out of "string_to_param"
    ("embedding", "a textual inversion embedding for SDXL", ("clip_g", "clip_l")),
    ("ip_adapter", "an IP-Adapter", ("image_proj", "ip_adapter")),
    ("t2i_adapter", "a T2I-Adapter", ("body.0.block1.", "conv_in.")),
    ("t2i_adapter", "a T2I-Adapter", ("adapter.body.0.",)),
    ("t2i_adapter", "a T2I-Adapter", ("body.0.in_conv.",)),
    ("hed", "the weights of the HED detector", ("block1.convs.0.", "block5.projection.")),
    ("hed", "the weights of the HED detector in their first layout", ("netVggOne.", "netCombine.")),
    ("zoe", "the weights of the ZoeDepth detector", ("core.core.pretrained.",)),
    ("midas", "the weights of the MiDaS depth detector", ("pretrained.", "scratch.")),
    ("mlsd", "the weights of the M-LSD line detector", ("backbone.features.", "block23.")),
    ("openpose_body", "the weights of OpenPose's body detector", ("conv1_1.", "Mconv7_stage6_L1.")),
    ("openpose_hand", "the weights of OpenPose's hand detector", ("conv1_1.", "Mconv7_stage6.")),
    ("uniformer", "the weights of the UniFormer segmentation detector", ("backbone.", "decode_head.")),
    ("sd3", "a Stable Diffusion 3 checkpoint", ("model.diffusion_model.joint_blocks.",)),
    ("flux", "a Flux checkpoint", ("double_blocks.",)),
    ("flux", "a Flux checkpoint", ("model.diffusion_model.double_blocks.",)),
    ("diffusers_unet", "a UNet in the diffusers layout", ("down_blocks.", "up_blocks.", "conv_in.")),
    ("unet", "a UNet alone, without prefixes", ("input_blocks.", "output_blocks.")),
    ("vae", "a VAE (autoencoder) alone", ("encoder.down.", "decoder.up.")),
    ("vae", "a VAE (autoencoder) alone", (VAE,)),
    ("diffusers_vae", "a VAE in the diffusers layout", ("encoder.down_blocks.", "decoder.up_blocks.")),
    ("text", "a CLIP text encoder alone", ("text_model.",)),
    ("text", "a text encoder alone", (TEXT,)),
)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a file holds.

    ``kind`` is a short fixed word, ``title`` the same for people ("a ControlNet for Stable Diffusion 1.x").
    ``family`` is "sd1", "sd2", "sdxl", the name in the config of a file of this project, or None.
    ``model_config`` is the YAML text of such a file.
    """

    path: Path
    kind: str
    title: str
    family: str | None
    has_base: bool
    has_control: bool
    model_config: str | None = None


def recognise(file: TensorFile) -> CheckpointInfo:
    """Tell what ``file`` holds; the kind is "unknown" when nothing fits."""
    tensors = file.tensors
    has_base = all(_any(tensors, prefix) for prefix in (UNET, VAE, TEXT))
    diffusers = _any(tensors, DIFFUSERS_CONTROL)
    has_control = diffusers or _any(tensors, CONTROL) or _any(tensors, "zero_convs.")
    own = file.metadata.get("config") if file.metadata.get("format") == FORMAT else None
    family, model = _family(tensors)
    if own is not None:
        family = _name(own)
        model = f"this suite's model '{family}'"
    kind, title = _kind(tensors, family, model, metadata_variant(file) or "full")
    return CheckpointInfo(file.path, kind, title, family, has_base, has_control, own)


def metadata_variant(file: TensorFile) -> str | None:
    """Return the variant of ControlNet that a file of this project names; None where it names none."""
    own = file.metadata.get("config", "") if file.metadata.get("format") == FORMAT else ""
    found = VARIANT.search(own)
    return found[1] if found else None


def control_variant(file: TensorFile, default: str = "full") -> str:
    """Return the variant of ControlNet that a file names, else ``default``.

    Raises:
        CheckpointMismatch: it names one that is not known here.
    """
    variant = metadata_variant(file) or default
    if variant not in CONTROL_VARIANTS:
        raise CheckpointMismatch(
            f"{file.path} holds a ControlNet of the variant {variant!r}, and known are "
            f"{', '.join(CONTROL_VARIANTS)}. Update the suite, or give another file."
        )
    return variant


def control_title(variant: str) -> str:
    """Name a ControlNet of a variant for people."""
    return "a ControlNet" if variant == "full" else f"a ControlNet of the variant {variant!r}"


def _kind(tensors: Mapping[str, TensorInfo], family: str | None, model: str, variant: str) -> tuple[str, str]:
    control = _any(tensors, CONTROL) or _any(tensors, "zero_convs.")
    if is_difference(tensors) and control:
        return "control_difference", f"the difference of a ControlNet for {model} to its base model"
    if "lora_controlnet" in tensors:
        return "control_lora", "a Control-LoRA"
    if any(LORA.search(key) for key in tensors):
        return "lora", f"a LoRA for {model}" if family else "a LoRA"
    if _any(tensors, DIFFUSERS_CONTROL):
        return "diffusers_control", f"a ControlNet for {model} in the diffusers layout"
    first = tensors.get(UNET + "input_blocks.0.0.weight")
    if first is not None:
        inputs = INPUTS.get(first.shape[1], "") if family in SD and len(first.shape) == 4 else ""
        whole = all(_any(tensors, prefix) for prefix in (VAE, TEXT)) or _any(tensors, "conditioner.")
        parts = " and a ControlNet" if control else "" if whole else ", UNet only or without some parts"
        return ("full_control" if control else "base"), f"a checkpoint of {model}{inputs}{parts}"
    if control:
        kind = "control" if variant == "full" else "control_variant"
        return kind, f"{control_title(variant)} for {model}"
    for kind, title, marks in MARKS:
        if all(_any(tensors, mark) for mark in marks):
            return kind, title
    return ("unknown", "something unknown") if tensors else ("empty", "a file without any tensors")


def _any(names: Mapping[str, object], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _family(tensors: Mapping[str, TensorInfo]) -> tuple[str | None, str]:
    """Tell the model by the width of the text that its attention reads."""
    if any(key.startswith(SECOND_TEXT) for key in tensors):
        return FAMILIES[2048]
    reads = [
        info.shape
        for key, info in tensors.items()
        if key.endswith("attn2.to_k.weight") or LORA_READS.fullmatch(key)
    ]
    widths = [shape[1] for shape in reads if len(shape) == 2]
    if not widths:
        return None, "an unknown model"
    return FAMILIES.get(max(widths), (None, f"an unknown model with {max(widths)}-wide text"))


def _name(config: str) -> str | None:
    for line in config.splitlines():
        if line.startswith("name:"):
            return line.removeprefix("name:").strip()
    return None
