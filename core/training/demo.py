"""The demo model's stages in order: latents, base, control, export, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from core.config import ModelConfig
from core.errors import CheckpointMismatch
from core.models.vae import AutoencoderKL
from core.runtime.device import CPU
from core.training.adversary import ADVERSARY
from core.training.base import START, Denoiser, SceneBatches, load_text, open_framed
from core.training.control import SceneControlBatches, close_squares, train_control
from core.training.data import LatentScenes, cache_latents
from core.training.export import export_base, export_control, load_average
from core.training.hints import CONTROLS
from core.training.loop import LoopConfig
from core.training.start import begin_with, carry, load_start
from core.training.together import BASE, train_together
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae import load_fitted
from core.weights.checkpoint import load_base
from core.weights.formats import open_layers, open_tensors
from core.weights.recognise import control_title, control_variant


def make_latents(
    config: ModelConfig, data: Path, vae_run: Path, count: int | None, device: torch.device = CPU
) -> None:
    """Encode the first ``count`` scenes of ``data`` with the fitted encoder."""
    cache_latents(load_fitted(config, vae_run).to(device), data, count=count)


def load_vae(config: ModelConfig, vae_run: Path) -> AutoencoderKL:
    """Return the fitted encoder with the trained decoder, or the fitted one where none is trained yet."""
    vae = load_fitted(config, vae_run)
    checkpoint = vae_run / "checkpoint.pt"
    if checkpoint.exists():
        average = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
        own = {key: value for key, value in average.items() if not key.startswith(ADVERSARY)}
        vae.load_state_dict(vae.state_dict() | own)
    return vae


def load_denoiser(config: ModelConfig, base_run: Path) -> Denoiser:
    """Return UNet and text encoder with the moving average of a training run."""
    model = Denoiser(config).requires_grad_(False)
    if (base_run / START).exists() and not (base_run / "checkpoint.pt").exists():
        load_start(model.unet, base_run)
    else:
        load_average(model.unet, base_run / "checkpoint.pt", prefix="unet.")
    load_text(model, base_run)
    return model


def train_demo_control(
    config: ModelConfig,
    data: Path,
    base_run: Path,
    loop: LoopConfig,
    *,
    control: str,
    batch_size: int,
    output: Path,
    crop: int | None = None,
    over: Path | None = None,
    device: torch.device = CPU,
) -> None:
    """Train the ControlNet named ``control`` on the trained base and write it to ``output``.

    ``over`` is the file of another ControlNet, whose trunk it takes over; ``crop`` is as for the batches.

    Raises:
        CheckpointMismatch: ``over`` does not hold the variant that ``config`` asks for.
    """
    base = load_denoiser(config, base_run)
    base.text.to(device)
    batches = SceneControlBatches(data, base.text, control, batch_size, crop)
    if over is not None:
        found = control_variant(open_tensors(over))
        if found != config.control.variant:
            raise CheckpointMismatch(
                f"{over} holds {control_title(found)}: give a file of the variant {config.control.variant!r}."
            )
        begin_with(over, loop.output)
    net = train_control(
        config, base.unet, batches, loop, batch_size=batch_size, over=over is not None, device=device
    )
    export_control(config, net, output, over)


def train_demo_controls(
    config: ModelConfig,
    data: Path,
    base_run: Path,
    loop: LoopConfig,
    *,
    turns: Sequence[str],
    batch_size: int,
    ckpts: Path,
    crop: int | None = None,
    framed: Path | None = None,
    close: Sequence[int] = (),
    device: torch.device = CPU,
) -> None:
    """Train the ControlNets that ``turns`` names on the trained base, with one trunk, and write them.

    The first one's file in ``ckpts`` carries the trunk, the others lie over it. Each goes on from where
    ``carry`` left it beside ``loop.output``, if it did. Where ``turns`` names "base", that learns with them
    and is written too, with the autoencoder of the run "vae" beside ``loop.output``.
    ``framed`` is a folder of framed scenes for the base's own steps, see ``SceneBatches``. ``close`` makes
    half of the controls' batches squares of so many pixels, of one side or another, see ``Close``.

    Raises:
        ValueError: there are framed scenes, but "base" has no turns; or ``close`` is no side of a square.
    """
    if framed is not None and BASE not in turns:
        raise ValueError(
            "framed scenes are for the base's steps: name base among --turns, or leave out --framed."
        )
    base = load_denoiser(config, base_run)
    base.text.to(device)
    names = tuple(name for name in dict.fromkeys(turns) if name != BASE)
    scenes = LatentScenes.open(data, device)
    near = close_squares(data, scenes, batch_size, close) if close else []
    draw_base = None
    if BASE in turns:
        draw_base = SceneBatches(scenes, base.text, batch_size, crop, open_framed(framed, device))
    vae = load_vae(config, loop.output.parent / "vae") if BASE in turns else None  # told now if it is missing
    nets = train_together(
        config,
        base.unet,
        {name: SceneControlBatches(data, base.text, name, batch_size, crop, scenes, near) for name in names},
        turns,
        loop,
        batch_size=batch_size,
        draw_base=draw_base,
        starts={name: loop.output.parent / f"control_{name}" for name in names},
        device=device,
    )
    if vae is not None:
        export_base(config, base.unet, vae, base.text, ckpts / "base.safetensors")
    for name, net in nets.items():
        over = None if name == names[0] else ckpts / f"{names[0]}.safetensors"
        export_control(config, net, ckpts / f"{name}.safetensors", over)


def carry_controls(config: ModelConfig, ckpts: Path, base_run: Path, runs: Path) -> list[str]:
    """Let the runs of all controls in ``ckpts`` begin where those are, moved to the newly trained base.

    ``ckpts`` still holds the base that they were trained on. Return the controls' names.
    """
    old = load_base(config, ckpts / "base.safetensors", device=CPU, dtype=torch.float32).unet.state_dict()
    new = load_denoiser(config, base_run).unet.state_dict()
    names = [name for name in CONTROLS if (ckpts / f"{name}.safetensors").exists()]
    for name in names:
        file = open_layers(ckpts / f"{name}.safetensors")
        carry(old, new, {key: file.read(key) for key in file.tensors}, runs / f"control_{name}")
    return names


def export_demo_base(config: ModelConfig, vae_run: Path, base_run: Path, output: Path) -> None:
    """Write the base file that ships in ckpts/demo."""
    base = load_denoiser(config, base_run)
    export_base(config, base.unet, load_vae(config, vae_run), base.text, output)


def evaluate_demo(count: int, steps: int, runs: Path, picture: Path | None, batch: int = 1) -> str:
    """Return Markdown tables of the bundled demo model's figures; ``picture`` is where a sheet goes.

    ``batch`` pictures are drawn at once.

    The judge of words is kept in ``runs``; it is trained first where it is not there.
    """
    from core.loading import load_pipeline
    from core.training.classifier import load_or_train
    from core.training.evaluate import evaluate

    library = SpriteLibrary.load()
    judge = load_or_train(library, runs, torch.device("cpu"))
    report = evaluate(load_pipeline("demo"), library, judge, count, steps=steps, batch=batch)
    if picture is not None:
        _write_sheet(picture, [triple for found in report.controls for triple in found.examples[:4]])
    return report.table()


def train_judge(runs: Path, loop_minutes: float | None, device: torch.device) -> str:
    """Train the judge on the sprites; return how often it is right itself."""
    from core.training.classifier import accuracy, load_or_train, single_things

    library = SpriteLibrary.load()
    judge = load_or_train(library, runs, device, minutes=loop_minutes)
    scenes = single_things(library, 256)
    right = accuracy(judge, scenes, [scene.image for scene in scenes])
    return f"{right:.1%} of 256 held-out scenes of one thing, among {len(judge.names)} things"


def evaluate_control(control: str, count: int, steps: int, picture: Path | None, batch: int = 1) -> str:
    """Return a Markdown table that tells how well ``control`` of the bundled demo model is obeyed.

    ``batch`` pictures are drawn at once.

    Raises:
        ValueError: the model has no such control; lists those it has.
        WeightsMissing: the control's detector is not on this computer; says how to get it.
    """
    from core.loading import load_pipeline
    from core.training.evaluate_controls import HEADER, Drawn, obedience

    pipe = load_pipeline("demo")
    if control not in pipe.controls:
        raise ValueError(f"control is {control!r}: give one of {', '.join(pipe.controls)}.")
    found = obedience(Drawn(pipe, SpriteLibrary.load(), count, steps, batch), control)
    if picture is not None:
        _write_sheet(picture, found.examples)
    return f"{HEADER}\n{found.row()}"


def evaluate_detector(detector: str, count: int, picture: Path | None) -> str:
    """Return a Markdown table that tells how well a detector does on held-out scenes."""
    from core.training.detectors.evaluate import measure

    found = measure(detector, SpriteLibrary.load(), count)
    if picture is not None:
        _write_sheet(picture, found.examples)
    return found.table()


def _write_sheet(path: Path, triples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    from core.training.evaluate_controls import sheet

    cv2.imwrite(str(path), sheet(triples)[:, :, ::-1])
