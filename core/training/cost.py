"""What a training step costs, beside a pass of the plain UNet and beside training that itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.loading import find_source
from core.models.blocks import TimestepSequential
from core.runtime.device import resolve_device
from core.training.controlnet import ControlRun, build_model
from core.weights.checkpoint import load_base

REPEATS = 3
GB = 2**30
HEADER = """| | seconds | weights, GB | gradients | optimiser | activations | together |
|---|---|---|---|---|---|---|"""
Inputs = tuple[Tensor, Tensor, Tensor]  # x_t, t, context


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of step: its ``seconds``, and the bytes that it has in memory at once.

    ``activations`` are what the gradient needs of the forward pass; without one, the skips. What gradient
    checkpointing computes anew comes on top, one block at a time.
    """

    seconds: float
    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimiser + self.activations

    def row(self, title: str) -> str:
        """Return a row of a Markdown table."""
        sizes = (self.weights, self.gradients, self.optimiser, self.activations, self.total)
        return f"| {title} | {self.seconds:.2f} | {' | '.join(f'{size / GB:.2f}' for size in sizes)} |"

    def over(self, other: Cost, what: str) -> str:
        """Say how much more this costs than ``other``."""
        memory, seconds = self.total / other.total - 1.0, self.seconds / other.seconds - 1.0
        return f"Over {what}: {memory:+.0%} memory, {seconds:+.0%} time."


def measure(run: ControlRun) -> str:
    """Return a Markdown table of what a batch of ``run`` costs, beside the base alone.

    Bytes are counted tensor by tensor, so they are the same on every device; seconds are measured.

    Raises:
        SuiteError: the base's weights are missing or of another model.
    """
    source, device = find_source(run.base), resolve_device(run.device)
    config = source.config
    networks = load_base(config, source.base, device=torch.device("cpu"), dtype=torch.float32)
    model = build_model(run, source, networks, device)
    x_t, t, context, hint = sample_inputs(run, config, networks.vae.factor, device)
    inputs = (x_t, t, context)
    unet = model.unet
    plain = pass_cost(unet, inputs, model.precision)
    step = step_cost(
        model, [p for _, p in model.trained()], lambda: model(*inputs, hint), offload=run.loop.offload
    )
    del model.net
    unet.float().requires_grad_(True)
    low = model.precision != torch.float32

    def itself() -> Tensor:
        with torch.autocast(device.type, model.precision, enabled=low):
            return unet(*inputs)

    base = step_cost(unet, list(unet.parameters()), itself, offload=run.loop.offload)
    rows = [
        plain.row("the base alone, one pass"),
        step.row("a step of the control"),
        base.row("a step that trains the base itself"),
    ]
    told = [step.over(plain, "plain inference"), step.over(base, "training the base itself")]
    return "\n".join([HEADER, *rows, "", *told])


def sample_inputs(
    run: ControlRun, config: ModelConfig, factor: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random x_t, t, context and hint of the shapes that ``run`` trains on."""
    height, width = run.size or (config.resolution, config.resolution)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(run.batch, *shape, generator=generator).to(device)

    x_t = normal(config.unet.in_channels, height // factor, width // factor)
    t = torch.randint(config.schedule.timesteps, (run.batch,), generator=generator).to(device)
    context = normal(config.text.context_length, config.unet.context_dim)
    return x_t, t, context, normal(config.control.hint_channels, height, width)


def pass_cost(unet: nn.Module, inputs: Inputs, precision: torch.dtype) -> Cost:
    """Return the cost of one pass without gradients."""
    skips: list[Tensor] = []
    blocks = unet.get_submodule("input_blocks").children()
    hooks = [block.register_forward_hook(lambda m, args, out: skips.append(out)) for block in blocks]
    kind = inputs[0].device.type

    @torch.no_grad()
    def once() -> None:
        skips.clear()
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            unet(*inputs)

    seconds = _seconds(once, inputs[0].device)
    for hook in hooks:
        hook.remove()
    return Cost(seconds, size_of(unet.parameters()), 0, 0, size_of(skips))


def step_cost(
    module: nn.Module, trained: list[nn.Parameter], forward: Callable[[], Tensor], *, offload: bool = False
) -> Cost:
    """Return the cost of forward, backward and AdamW; with ``offload`` the last counts no memory."""
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def pack_input(block: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            pack(args[0])

    def once(watch: bool = False) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks if watch else nullcontext():
            loss = forward().float().pow(2).mean()
        loss.backward()
        optimizer.step()

    thrifty = [m for m in module.modules() if isinstance(m, TimestepSequential) and m.recompute]
    handles = [block.register_forward_pre_hook(pack_input) for block in thrifty]
    once(watch=True)
    for handle in handles:
        handle.remove()
    seconds = _seconds(once, trained[0].device)
    gradients = size_of([p.grad for p in trained if p.grad is not None])
    moments = size_of([v for state in optimizer.state.values() for v in state.values() if v.ndim])
    for p in trained:
        p.grad = None
    return Cost(
        seconds, size_of(module.parameters()), gradients, 0 if offload else moments, sum(kept.values())
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _seconds(once: Callable[[], None], device: torch.device) -> float:
    """Return the shortest of some times, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
