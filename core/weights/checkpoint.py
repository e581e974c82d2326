"""Checkpoints to networks: every published layout, tensor by tensor, nothing left over, nothing missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import ModelConfig, config_names
from core.errors import CheckpointMismatch
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.variants import AnyControlNet, control_class
from core.weights.convert import (
    CONTROL,
    DIFFERENCE,
    TEXT,
    UNET,
    VAE,
    Sources,
    control_sources,
    is_difference,
    is_harmless,
    is_new,
    prefixed,
    text_sources,
)
from core.weights.filling import fill
from core.weights.formats import TensorFile, TensorInfo, open_layers, open_tensors
from core.weights.parts import Offset, Part
from core.weights.recognise import CheckpointInfo, control_title, control_variant, recognise

log = logging.getLogger(__name__)

FAMILY_CONFIGS = {"sd1": "sd15", "sd2": "sd21"}
SHOWN_KEYS = 4  # how many keys of a kind a message lists


@dataclass(frozen=True, slots=True)
class BaseNetworks:
    """The networks of a base model, ready for inference."""

    unet: UNet
    vae: AutoencoderKL
    text: TextEncoder


@dataclass(slots=True)
class Plan:
    """Which tensors of a file make which tensors of a network, and what does not fit."""

    sources: Sources
    missing: list[str] = field(default_factory=list)  # their names
    unexpected: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)  # "key is (1, 2), should be (3, 4)"

    @property
    def fits(self) -> bool:
        """Whether the file holds exactly the network."""
        return not (self.missing or self.unexpected or self.misfits)

    @staticmethod
    def joined(plans: Sequence[Plan]) -> Plan:
        """Put several plans for one file together, to report on."""
        total = Plan({})
        for plan in plans:
            total.missing += plan.missing
            total.unexpected += plan.unexpected
            total.misfits += plan.misfits
        return total


def load_base(
    config: ModelConfig,
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae: Part | None = None,
    vae_dtype: torch.dtype | None = None,
    pack: bool = False,
) -> BaseNetworks:
    """Load UNet, autoencoder and text encoder from a full or plain single-file checkpoint.

    The ControlNet half of a full file, EMA copies and schedule buffers are not read. ``vae`` is taken instead
    of the file's autoencoder, which may then be missing. ``vae_dtype`` is the autoencoder's number format, by
    default ``dtype`` too. ``pack`` as in ``fill``.

    Raises:
        CheckpointMismatch: the file is no such checkpoint; names the file, what it seems to be, and keys.
    """
    file = open_tensors(path)
    with torch.device("meta"):
        networks = BaseNetworks(UNet(config.unet), AutoencoderKL(config.vae), TextEncoder(config.text))
    plans = plan_base(config, networks, file.tensors)
    if vae is not None:
        del plans["vae"]
    check_plan(file, config, "a base model", [config.weights], Plan.joined(list(plans.values())))
    numbers = {"vae": dtype if vae_dtype is None else vae_dtype}
    if vae is not None:
        fill(networks.vae, vae, device, numbers["vae"], pack=pack)
    for name, plan in plans.items():
        network = getattr(networks, name)
        part = Part(file, plan.sources, network.state_dict())
        fill(network, part, device, numbers.get(name, dtype), pack=pack)
    return networks


def load_control(
    config: ModelConfig,
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    base: Path | None = None,
    trained_on: Path | None = None,
    pack: bool = False,
) -> AnyControlNet:
    """Load a ControlNet from a full, control-only, diffusers-layout or difference file.

    A file that holds only what differs from another ControlNet names that in its metadata, as does one that
    holds another variant than ``config`` says.

    Args:
        config: describes the base model.
        path: the file.
        device: where to put the network.
        dtype: the number format of its weights.
        base: the base model's file, to which a difference file adds; the other kinds do not need it.
        trained_on: the file of the base model that the ControlNet grew from: moves it from there to ``base``,
            see ``Offset``. A difference needs no moving.
        pack: as in ``fill``.

    Raises:
        ValueError: a difference file, or ``trained_on``, without ``base``.
        CheckpointMismatch: a file holds no such network; names it, what it seems to be, and keys.
    """
    net, part = open_control(config, path)
    difference = is_difference(part.file.tensors)
    offset = None
    if difference or trained_on is not None:
        if base is None:
            raise ValueError(f"base is None: {path.name} adds to the base model's weights; give its file.")
        source = None if difference or trained_on is None else open_unet(config, trained_on)
        offset = Offset(open_unet(config, base), source)
    fill(net, part, device, dtype, offset, pack=pack)
    return net


def open_control(config: ModelConfig, path: Path) -> tuple[AnyControlNet, Part]:
    """Open a file that holds a ControlNet; also return the network, on the meta device.

    Raises:
        CheckpointMismatch: the file holds no such ControlNet; names it, what it seems to be, and keys.
    """
    file = open_layers(path)
    control = replace(config.control, variant=control_variant(file, config.control.variant))
    with torch.device("meta"):
        net = control_class(control)(config.unet, control)
    plan = plan_control(config, net, file.tensors)
    check_plan(file, config, control_title(control.variant), list(config.controls.values()), plan)
    return net, Part(file, plan.sources, net.state_dict())


def open_unet(config: ModelConfig, path: Path) -> Part:
    """Open a base model's file and return its UNet.

    Raises:
        CheckpointMismatch: the file holds no such UNet; names it, what it seems to be, and keys.
    """
    file = open_tensors(path)
    with torch.device("meta"):
        wanted = UNet(config.unet).state_dict()
    plan = plan_sources(wanted, prefixed(wanted, UNET), file.tensors)
    check_plan(file, config, "a base model", [config.weights], plan)
    return Part(file, plan.sources, wanted)


def inspect_checkpoint(path: Path) -> CheckpointInfo:
    """Tell what a file holds, from its header alone.

    Raises:
        CheckpointMismatch: the file is missing, empty, cut off, no checkpoint, or a pickle with code.
    """
    return recognise(open_tensors(path))


def plan_base(
    config: ModelConfig, networks: BaseNetworks, tensors: Mapping[str, TensorInfo]
) -> dict[str, Plan]:
    """Plan the loading of a base model; reads nothing."""
    wanted = {name: _wanted(getattr(networks, name)) for name in ("unet", "vae", "text")}
    plans = {
        "unet": plan_sources(wanted["unet"], prefixed(wanted["unet"], UNET), tensors),
        "vae": plan_sources(wanted["vae"], prefixed(wanted["vae"], VAE), tensors),
        "text": plan_sources(wanted["text"], text_sources(config.text, wanted["text"], tensors), tensors),
    }
    used = {key for plan in plans.values() for keys in plan.sources.values() for key in keys}
    plans["unet"].unexpected = [
        key for key in tensors if key not in used and not is_harmless(key) and not key.startswith(CONTROL)
    ]
    return plans


def plan_control(config: ModelConfig, net: nn.Module, tensors: Mapping[str, TensorInfo]) -> Plan:
    """Plan the loading of a ControlNet; reads nothing."""
    wanted = _wanted(net)
    plan = plan_sources(wanted, control_sources(config, wanted, tensors), tensors)
    if is_difference(tensors):  # a difference of nothing may have been left out
        plan.missing = [key for key in plan.missing if is_new(key)]
        plan.sources = {ours: keys for ours, keys in plan.sources.items() if keys[0] in tensors}
    used = {key for keys in plan.sources.values() for key in keys}
    plan.unexpected = [
        key
        for key in tensors
        if not (key in used or key in DIFFERENCE or is_harmless(key) or key.startswith((UNET, VAE, TEXT)))
    ]
    return plan


def _wanted(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict()


def plan_sources(wanted: Mapping[str, Tensor], sources: Sources, tensors: Mapping[str, TensorInfo]) -> Plan:
    """Plan which of a file's ``tensors`` make which of the ``wanted`` ones; reads nothing."""
    plan = Plan(sources)
    for ours, theirs in sources.items():
        absent = [key for key in theirs if key not in tensors]
        plan.missing += absent
        if absent:
            continue
        infos = [tensors[key] for key in theirs]
        shape = _joined_shape(infos)
        if not _same_shape(shape, tuple(wanted[ours].shape)):
            plan.misfits.append(f"{theirs[0]} is {shape}, should be {tuple(wanted[ours].shape)}")
        elif wanted[ours].is_floating_point() != infos[0].dtype.is_floating_point:
            plan.misfits.append(f"{theirs[0]} holds {infos[0].dtype}, should be {wanted[ours].dtype}")
    return plan


def _joined_shape(infos: Sequence[TensorInfo]) -> tuple[int, ...]:
    """Return the shape of tensors put end to end; the first one's, which fits nowhere, if they cannot be."""
    first = infos[0].shape
    if len(infos) == 1 or not first or len({info.shape[1:] for info in infos}) > 1:
        return first
    return (sum(info.shape[0] for info in infos), *first[1:])


def _same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Compare shapes; a Linear's (m, n) and a 1x1 convolution's (m, n, 1, 1) are the same weights."""
    return a == b or {len(a), len(b)} == {2, 4} and (*a, 1, 1)[:4] == (*b, 1, 1)[:4]


def check_plan(file: TensorFile, config: ModelConfig, purpose: str, names: Sequence[str], plan: Plan) -> None:
    """Raise ``CheckpointMismatch`` unless the plan fits; ``names`` in the registry would fit."""
    if plan.fits:
        return
    info = recognise(file)
    lines = [f"{file.path} seems to be {info.title}; needed is {purpose} for {config.title} ({config.name})."]
    *keys, advice = describe_misfit(plan, names)
    lines += keys
    other = FAMILY_CONFIGS.get(info.family or "", info.family)
    if other and other != config.name and other in config_names():
        lines.append(f"It may fit the model {other}.")
    raise CheckpointMismatch("\n".join([*lines, advice]))


def describe_misfit(plan: Plan, names: Sequence[str]) -> list[str]:
    """Return lines that list the keys which do not fit and, last, what to do."""
    advice = f"Get one that fits: python -m core.weights get {names[0]}" if names else "Give another file."
    return [
        *listed("Missing", plan.missing),
        *listed("Unexpected", plan.unexpected),
        *listed("Other shapes", plan.misfits),
        advice,
    ]


def listed(title: str, found: Sequence[str]) -> list[str]:
    """Return a line that names the first of what was found and counts the rest; nothing for nothing."""
    more = f" and {len(found) - SHOWN_KEYS:,} more" if len(found) > SHOWN_KEYS else ""
    return [f"{title}: {', '.join(found[:SHOWN_KEYS])}{more}."] if found else []
