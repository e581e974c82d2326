"""Train a ControlNet on your own data: check the data, copy the encoder, train, draw on the way, export."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.config import ModelConfig, with_variant
from core.errors import SuiteError
from core.loading import Source, find_source
from core.runtime.device import DTYPES, cpu_has_bfloat16
from core.training.batches import Cache, Encoder, PairBatches, Share
from core.training.controlled import BASE, ControlledUNet, build_network
from core.training.diffusion import DiffusionLoss
from core.training.export import export_trained
from core.training.loop import LoopConfig, Trainer
from core.training.pairs import PairFolder, Size, open_pairs
from core.training.processes import Processes, processes
from core.training.validation import Board, Validation
from core.weights.checkpoint import BaseNetworks, load_base, load_control

log = logging.getLogger(__name__)

RUN = "run.json"
PRECISIONS = ("auto", "half", *DTYPES)
ADAM_EPSILON = 1e-8  # torch's default, which the original keeps


@dataclass(frozen=True, slots=True)
class ControlRun:
    """A checked command line: what to train, on what, and how.

    ``variant`` is a kind of ControlNet, as in the models' configs. ``size`` None is the base's own;
    ``validation`` None draws pairs of ``data``, ``cfg_scale`` None at the base's guidance scale.
    ``decoder_rate`` is the learning rate of the base's decoder where ``sd_locked`` is off. ``cache`` keeps
    latents and contexts on disk, ``loop.offload`` the optimiser in main memory.
    """

    base: str
    data: Path
    name: str
    loop: LoopConfig
    variant: str = "full"
    batch: int = 4
    size: Size | None = None
    sd_locked: bool = True
    decoder_rate: float = 2e-6
    only_mid_control: bool = False
    drop_prompts: float = 0.5
    precision: torch.dtype = torch.float32
    recompute: bool = False
    cache: bool = False
    start: Path | None = None
    validation: Path | None = None
    validate_every: int = 0
    validate_count: int = 4
    cfg_scale: float | None = None
    tensorboard: bool = False
    device: str = "auto"

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return self.loop.output


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the number format to train in: "auto" and "half" are bfloat16 where the device has it.

    Elsewhere "auto" is float32 and "half" float16.
    """
    if name in DTYPES:
        return DTYPES[name]
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if cuda or (device.type == "cpu" and cpu_has_bfloat16()):
        return torch.bfloat16
    return torch.float16 if name == "half" else torch.float32


def decoder_factor(run: ControlRun) -> Callable[[str], float]:
    """Return by which factor each parameter, by name, learns at another rate than the run's."""
    slower = run.decoder_rate / run.loop.learning_rate
    return lambda name: slower if name.startswith(BASE) else 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of once its files are read."""

    source: Source
    model: ControlledUNet
    encoder: Encoder
    data: PairFolder
    batches: PairBatches


def train_controlnet(run: ControlRun) -> bool:
    """Train, or go on where the newest checkpoint is, and export; tell whether it was stopped.

    Raises:
        ValueError: the data are not as they should be, or the run does not fit what is in the output folder.
        SuiteError: weights are missing or of another model, loss or gradient are not finite, or a file can
            not be read or written; every message says what is kept, and what to do.
    """
    with processes(run.device) as group, ExitStack() as closing:
        source = find_source(run.base)
        check_run(run, source)
        data = _open(run, run.data, source.config, group)
        board = None
        if run.tensorboard and group.first:
            board = Board(run.output / "tensorboard")
            closing.callback(board.close)
        parts = prepare(run, source, data, group)
        if group.first:
            (run.output / RUN).write_text(json.dumps(facts(run, source)))
        trainer = train(run, parts, group, board)
        if group.first:
            trainer.use_average()
            written = export_trained(source, parts.model, run.name, run.output, run.variant)
            print(_told(run, source, written, trainer))
        group.wait()
        return trainer.stopped


def _open(run: ControlRun, folder: Path, config: ModelConfig, group: Processes) -> PairFolder:
    """Check a data set in the first process, and let the others trust it."""
    size = run.size or (config.resolution, config.resolution)
    output = run.output if folder == run.data else run.output / "validation"
    if group.first:
        found = open_pairs(folder, size, output)
        group.wait()
        return found
    group.wait()
    return open_pairs(folder, size, output, quiet=True)


def facts(run: ControlRun, source: Source) -> dict[str, Any]:
    """Return what may not change from one run in a folder to the next."""
    return {
        "base": f"{source.base.name}, {source.base.stat().st_size:,} bytes",
        "size": list(run.size or (source.config.resolution, source.config.resolution)),
        "variant": run.variant,
        "start": str(run.start) if run.start else None,
    }


def check_run(run: ControlRun, source: Source) -> None:
    """Compare with what the output folder was begun with.

    Raises:
        ValueError: the folder belongs to another base, size, variant or start.
    """
    path = run.output / RUN
    if not path.is_file():
        return
    there = json.loads(path.read_text())
    wanted = facts(run, source)
    other = [
        f"{key} was {there.get(key)}, now {wanted[key]}" for key in wanted if there.get(key) != wanted[key]
    ]
    if other:
        raise ValueError(f"{run.output} holds another run: {'; '.join(other)}. Give another --output.")


def prepare(run: ControlRun, source: Source, data: PairFolder, group: Processes) -> Parts:
    """Load the base, copy its encoder, and get the data ready."""
    config, device = source.config, group.device
    cpu = torch.device("cpu")
    networks = load_base(config, source.base, device=cpu, dtype=torch.float32)
    encoder = Encoder(networks, device, run.precision, leave=run.cache)
    model = build_model(run, source, networks, device)
    batches = PairBatches(
        data,
        Share(run.batch, group.rank, group.count),
        run.loop.seed,
        source=_cached(run, source, data, encoder, group) if run.cache else encoder,
        timesteps=config.schedule.timesteps,
        drop_prompts=run.drop_prompts,
        device=device,
    )
    return Parts(source, model, encoder, data, batches)


def build_model(
    run: ControlRun, source: Source, networks: BaseNetworks, device: torch.device
) -> ControlledUNet:
    """Make the locked base under its trainable copy, which begins as ``run.start`` where that is given."""
    torch.manual_seed(run.loop.seed)  # the hint block of a fresh copy is random
    net = build_network(with_variant(source.config, run.variant), networks.unet)
    if run.start is not None:
        cpu = torch.device("cpu")
        net = load_control(source.config, run.start, device=cpu, dtype=torch.float32, base=source.base)
    model = ControlledUNet(
        networks.unet,
        net,
        sd_locked=run.sd_locked,
        only_mid_control=run.only_mid_control,
        recompute=run.recompute,
        precision=run.precision,
    )
    return model.to(device)


def _cached(run: ControlRun, source: Source, data: PairFolder, encoder: Encoder, group: Processes) -> Cache:
    folder, base = run.output / "cache", f"{source.base} {source.base.stat().st_size}"
    if group.first and not Cache.current(folder, data, base):
        try:
            Cache.make(folder, data, encoder, base)
        except OSError as error:
            raise SuiteError(
                f"{folder} cannot be written ({error.strerror}): make room, or leave --cache out."
            ) from error
    group.wait()
    return Cache(folder, data)


def loss_of(
    model: nn.Module, batches: PairBatches, criterion: DiffusionLoss
) -> Callable[[int, torch.Generator], Tensor]:
    """Return the loss of a batch by its number; ``model`` is called as a ``ControlledUNet``."""

    def loss(batch: int, generator: torch.Generator) -> Tensor:
        drawn = batches(batch)
        x_0 = drawn.batch.x_0
        x_t = criterion.noised(x_0, drawn.noise, drawn.t)
        prediction = model(x_t, drawn.t, drawn.batch.context, drawn.batch.hint)
        return criterion(prediction, x_0, drawn.noise, drawn.t)

    return loss


def make_trainer(run: ControlRun, model: ControlledUNet, group: Processes) -> tuple[Trainer, nn.Module]:
    """Return the trainer, resumed where there is a checkpoint, and what a step calls."""
    shared = group.share(model, some_unused=run.only_mid_control)
    trainer = Trainer(
        model.trained(), run.loop, factor_of=decoder_factor(run), processes=group, module=shared
    )
    return trainer, shared


def train(run: ControlRun, parts: Parts, group: Processes, board: Board | None) -> Trainer:
    """Run the steps that are left.

    Raises:
        SuiteError: loss or gradient are not finite; names the step's pictures and the last good checkpoint.
    """
    trainer, shared = make_trainer(run, parts.model, group)
    config, data = parts.source.config, parts.data
    if run.validation is not None:
        data = _open(run, run.validation, config, group)
    validation = Validation(
        config, parts.model, parts.encoder, data, run.output / "samples", run.validate_count,
        config.cfg_scale if run.cfg_scale is None else run.cfg_scale,
    )  # fmt: skip

    def after_step(step: int, figures: dict[str, float]) -> None:
        if not group.first:
            return
        if board is not None:
            board.figures(step, figures)
        if run.validate_every and step % run.validate_every == 0:
            with trainer.averaged():
                sheet = validation.write(step)
            if board is not None:
                board.sheet(step, sheet)

    loss = loss_of(shared, parts.batches, DiffusionLoss(config.schedule))
    try:
        trainer.run(loss, run.batch, after_step)
    except FloatingPointError as error:
        first = trainer.step * run.loop.accumulate
        names = [name for part in range(run.loop.accumulate) for name in parts.batches.named(first + part)]
        raise SuiteError(f"{error}\nThe pictures of this step: {', '.join(names)}") from error
    return trainer


def _told(run: ControlRun, source: Source, written: Path, trainer: Trainer) -> str:
    """Say how to use what was trained."""
    state = "Stopped" if trainer.stopped else "Done"
    lines = [f"{state} at step {trainer.step} of {run.loop.steps}."]
    if trainer.step < run.loop.steps:
        lines.append("The same command goes on from here.")
    lines.append(f"The control is in {run.output}. Use it: python launch.py --model {written}")
    if run.name not in source.config.controls:
        lines.append(
            f"No app asks for a control named {run.name}: from Python, load_pipeline({str(written)!r}) has "
            "it. Give --name canny, or another app's, to use it in that app's tab."
        )
    return "\n".join(lines)
