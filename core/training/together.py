"""Train several ControlNets at once on one trunk: each has only a hint block, outputs and vectors alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class
from core.runtime.device import CPU, for_training
from core.training.control import ControlBatch, control_loss, trained_over
from core.training.diffusion import DiffusionLoss
from core.training.loop import LoopConfig, Trainer
from core.training.start import load_start


def share_trunk(nets: Mapping[str, AnyControlNet]) -> nn.ModuleDict:
    """Give all networks the first one's trunk: the very same parameters, which ``parameters`` lists once.

    What ``trained_over`` names stays each network's own.

    Raises:
        ValueError: there is no network.
    """
    if not nets:
        raise ValueError("there is no ControlNet to train: name one at least.")
    first, *others = nets.values()
    shared = {name: p for name, p in first.named_parameters() if not trained_over(first, name)}
    for net in others:
        for name, parameter in shared.items():
            module, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(module), leaf, parameter)
    return nn.ModuleDict(dict(nets))


def train_together(
    config: ModelConfig,
    unet: UNet,
    draws: Mapping[str, Callable[[torch.Generator], ControlBatch]],
    turns: Sequence[str],
    loop: LoopConfig,
    *,
    batch_size: int,
    starts: Mapping[str, Path] | None = None,
    device: torch.device = CPU,
) -> dict[str, AnyControlNet]:
    """Train a ControlNet for each name in ``draws``, which gives its batches, on the locked ``unet``.

    One control learns in each step, in the order of ``turns``, again and again; the trunk learns in all of
    them. The first name's network gives the trunk it starts with. ``starts`` names the folders of those that
    go on from something, as ``carry`` leaves them. It resumes from ``loop.output``, and returns the moving
    averages. The batches must lie on ``device``.

    Raises:
        ValueError: ``turns`` names a control that has no batches, or leaves one out.
    """
    if set(turns) != set(draws):
        raise ValueError(f"the turns are {', '.join(turns)}: name each of {', '.join(draws)}, and no other.")
    torch.manual_seed(loop.seed)
    unet.requires_grad_(False).float()
    nets: dict[str, AnyControlNet] = {}
    for name in draws:
        nets[name] = control_class(config.control).from_unet(unet, config.control)
        if starts is not None and name in starts:
            load_start(nets[name], starts[name])
    for_training(unet, device)
    for net in nets.values():
        for_training(net, device)
    modules = share_trunk(nets)
    criterion = DiffusionLoss(config.schedule)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        name = turns[step % len(turns)]
        return control_loss(criterion, unet, nets[name], draws[name](generator), generator)

    trainer = Trainer(modules.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    return {name: net.requires_grad_(False) for name, net in nets.items()}
