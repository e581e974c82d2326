"""Train several ControlNets at once on one trunk: each has only a hint block, outputs and vectors alone.

The base is locked, or learns with them, in steps of its own and in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class
from core.runtime.device import CPU, for_training
from core.training.base import BaseBatch, base_loss
from core.training.compiling import compile_blocks
from core.training.control import ControlBatch, control_loss, trained_over
from core.training.diffusion import DiffusionLoss
from core.training.loop import LoopConfig, Trainer
from core.training.start import load_start

BASE = "base"  # whose turn is a step without a control


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
    draw_base: Callable[[torch.Generator], BaseBatch] | None = None,
    starts: Mapping[str, Path] | None = None,
    nets: Mapping[str, AnyControlNet] | None = None,
    compiled: bool = False,
    after_step: Callable[[Trainer, Mapping[str, AnyControlNet]], None] | None = None,
    device: torch.device = CPU,
) -> dict[str, AnyControlNet]:
    """Train a ControlNet for each name in ``draws``, which gives its batches, on ``unet``.

    One control learns in each step, in the order of ``turns``, again and again; the trunk learns in all of
    them. The first name's network gives the trunk it starts with. ``starts`` names the folders of those that
    go on from something, as ``carry`` leaves them; or ``nets`` gives all networks. It resumes from
    ``loop.output``, and returns the moving averages. The batches must lie on ``device``. ``compiled`` lets
    torch.compile make the steps faster, after a minute or two; all batches must be of one size then.
    ``after_step`` is given the trainer and the networks.

    The ``unet`` is locked, unless ``draw_base`` is given: then "base" has turns too, which are steps without
    a control, the ``unet`` learns in every step, and it is left as its moving average.

    Raises:
        ValueError: ``turns`` names what has no batches, or leaves one out.
    """
    names = (*draws, *([BASE] if draw_base is not None else ()))
    if set(turns) != set(names):
        raise ValueError(f"the turns are {', '.join(turns)}: name each of {', '.join(names)}, and no other.")
    torch.manual_seed(loop.seed)
    unet.requires_grad_(False).float()
    made = {}
    for name in draws:
        made[name] = nets[name] if nets else control_class(config.control).from_unet(unet, config.control)
        if starts is not None and name in starts:
            load_start(made[name], starts[name])
    for_training(unet, device)
    for net in made.values():
        for_training(net, device)
    modules = share_trunk(made)
    learned = list(modules.named_parameters())
    if draw_base is not None:
        learned += [(f"{BASE}.{name}", p) for name, p in unet.requires_grad_(True).named_parameters()]
    criterion = DiffusionLoss(config.schedule)
    if compiled:
        compile_blocks([unet, *made.values()])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        name = turns[step % len(turns)]
        if name == BASE and draw_base is not None:
            return base_loss(criterion, unet, draw_base(generator), generator)
        return control_loss(criterion, unet, made[name], draws[name](generator), generator)

    trainer = Trainer(learned, loop)
    trainer.run(
        loss, batch_size, None if after_step is None else lambda step, figures: after_step(trainer, made)
    )
    trainer.use_average()
    unet.requires_grad_(False)
    return {name: net.requires_grad_(False) for name, net in made.items()}
