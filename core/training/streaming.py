"""Train the demo's base and ControlNets together on a GPU, on scenes that are made meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from core.config import ModelConfig, parse_config
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class
from core.training.base import FRAMED_SHARE, BaseBatch
from core.training.export import export_base, export_control
from core.training.grow import grown
from core.training.loop import LoopConfig, Trainer
from core.training.near import check_sides
from core.training.pieces import DRAWN
from core.training.streamed import SceneStream
from core.training.together import BASE, train_together
from core.training.toyworld.sprites import SpriteLibrary
from core.weights.checkpoint import BaseNetworks, load_base, load_control
from core.weights.formats import open_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamedRun:
    """What is trained, from what, on how many scenes.

    ``start`` and ``ckpts`` are folders of exported files; ``data`` holds the maps that are not made with the
    scenes. The first ``with_truth`` of ``scenes`` scenes have all maps. The base's own steps learn from
    so many ``framed`` scenes too, see ``SceneBatches``. ``close`` is as for ``SceneStream.draw_control``.
    ``export_every`` are minutes.
    """

    start: Path
    ckpts: Path
    data: Path
    turns: Sequence[str]
    batch_size: int
    scenes: int
    with_truth: int
    workers: int
    framed: int = 0
    close: Sequence[int] = ()
    compiled: bool = False
    export_every: float | None = None


def load_grown(
    config: ModelConfig, start: Path, names: Sequence[str]
) -> tuple[BaseNetworks, dict[str, AnyControlNet]]:
    """Load the base and the ControlNets ``names`` in ``start``, with as many blocks as ``config`` says.

    Raises:
        CheckpointMismatch: a file does not hold what its own metadata says.
        ValueError: the files differ from ``config`` in something else.
    """
    cpu, path = torch.device("cpu"), start / "base.safetensors"
    own = parse_config(open_tensors(path).metadata["config"], path)
    base = load_base(own, path, device=cpu, dtype=torch.float32)
    nets = {
        name: load_control(own, start / f"{name}.safetensors", device=cpu, dtype=torch.float32)
        for name in names
    }
    if own.unet.res_blocks == config.unet.res_blocks:
        return base, nets
    unet = UNet(config.unet)
    grown(unet, own.unet, config.unet, base.unet.state_dict())
    larger = {}
    for name, net in nets.items():
        torch.manual_seed(0)  # the trunk that they will share is the same in all of them
        larger[name] = control_class(config.control)(config.unet, config.control)
        grown(larger[name], own.unet, config.unet, net.state_dict())
    return replace(base, unet=unet), larger


def export_all(
    config: ModelConfig, base: BaseNetworks, nets: Mapping[str, AnyControlNet], ckpts: Path
) -> None:
    """Write base and ControlNets as the suite's files; the first ControlNet's carries the trunk."""
    export_base(config, base.unet, base.vae, base.text, ckpts / "base.safetensors")
    first = next(iter(nets))
    for name, net in nets.items():
        over = None if name == first else ckpts / f"{first}.safetensors"
        export_control(config, net, ckpts / f"{name}.safetensors", over)


def draw_framed(
    stream: SceneStream, framed: SceneStream | None, size: int, generator: torch.Generator
) -> BaseBatch:
    """Draw ``size`` scenes for a step of the base, FRAMED_SHARE of them framed where there are such."""
    if framed is None:
        return stream.draw_base(size, generator)
    few = round(FRAMED_SHARE * size)
    drawn = framed.draw_base(few, generator), stream.draw_base(size - few, generator)
    return BaseBatch(torch.cat([part.x_0 for part in drawn]), torch.cat([part.context for part in drawn]))


def train_streamed(
    config: ModelConfig, library: SpriteLibrary, run: StreamedRun, loop: LoopConfig, device: torch.device
) -> None:
    """Train as ``run`` says, and write the moving averages; it resumes from ``loop.output``.

    The scenes are made in other processes; training begins when a few thousand are there. What is drawn
    depends on how many there are by then: two runs are alike, not the same bit for bit.

    Raises:
        FileNotFoundError: maps are missing; names the command that makes them.
        SuiteError: the scenes cannot be made.
        ValueError: ``run.close`` is no side of a square of the scenes.
    """
    torch.manual_seed(loop.seed)
    torch.backends.cudnn.benchmark = True  # batches are of few sizes
    check_sides(run.close, config.resolution)
    names = [name for name in dict.fromkeys(run.turns) if name != BASE]
    base, nets = load_grown(config, run.start, names)
    text = base.text.to(device)
    stream = SceneStream(
        library, base.vae, text, run.scenes, run.with_truth, size=config.resolution, device=device
    )
    stream.add_cached(run.data, [name for name in names if name not in DRAWN])
    framed, makers = None, 0
    if run.framed and BASE in run.turns:
        makers = max(1, run.workers // 3)
        framed = SceneStream(
            library, base.vae, text, run.framed, 0, size=config.resolution, device=device, framed=True
        )
        framed.start(makers)
    stream.start(max(1, run.workers - makers))
    began = time.monotonic()
    exported = [began]

    def after_step(trainer: Trainer, trained: Mapping[str, AnyControlNet]) -> None:
        now = time.monotonic()
        if trainer.step % 100 == 0:
            log.info("step %d, %d scenes, %.0f s", trainer.step, stream.ready, now - began)
        if run.export_every is not None and now - exported[0] > run.export_every * 60:
            with trainer.averaged():
                export_all(config, base, trained, run.ckpts)
            exported[0] = time.monotonic()

    stream.wait(4096)
    if framed is not None:
        framed.wait(2048)
    log.info("%d scenes after %.0f s", stream.ready, time.monotonic() - began)
    trained = train_together(
        config,
        base.unet,
        {name: partial(stream.draw_control, name, run.batch_size, close=run.close) for name in names},
        run.turns,
        loop,
        batch_size=run.batch_size,
        draw_base=partial(draw_framed, stream, framed, run.batch_size) if BASE in run.turns else None,
        nets=nets,
        compiled=run.compiled,
        after_step=after_step,
        device=device,
    )
    export_all(config, base, trained, run.ckpts)
