"""Training on one's own data: the original's step, exact resume, and options that mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core import ControlUnit, Request, load_pipeline
from core.config import ScheduleConfig
from core.errors import CheckpointMismatch, SuiteError
from core.loading import find_source
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.variants import LiteControlNet
from core.training.batches import Cache, Encoder, PairBatches, Share
from core.training.controlled import BASE, ControlledUNet
from core.training.controlnet import (
    ADAM_EPSILON,
    ControlRun,
    build_model,
    decoder_factor,
    loss_of,
    make_trainer,
    train_controlnet,
)
from core.training.diffusion import DiffusionLoss
from core.training.loop import LoopConfig, Trainer
from core.training.pairs import open_pairs
from core.training.processes import Processes
from core.weights.checkpoint import load_base, load_control
from tests.golden_networks import (
    MARGIN,
    SMALL_CONTROL,
    SMALL_UNET,
    load_golden,
    materialise,
    sampled,
)
from tests.tiny_model import hint, latents, tiny_config, tiny_control, tiny_networks
from tests.training.own_data import own_run

CPU = torch.device("cpu")
ALONE = Processes(CPU)
ROOT = Path(__file__).parents[2]
# AdamW with an epsilon above the gradients: steps are then in proportion to these, and small differences stay
# small, which the usual epsilon would turn into whole steps wherever a gradient is next to nothing.
STEADY: dict[str, Any] = {"steps": 3, "learning_rate": 1.0, "epsilon": 1.0, "clip_norm": 0.0}
RATE = 1e-5
GRADIENT_NOISE = 3e-5  # relative to the largest; the original against itself on two thread settings


def checkpoint(output: Path) -> dict[str, Any]:
    newest = sorted(output.glob("step_*.pt"))[-1]
    return dict(torch.load(newest, weights_only=True))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    params = all(torch.equal(a["params"][k], b["params"][k]) for k in a["params"] | b["params"])
    moments = zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True)
    return params and all(torch.equal(x[k], y[k]) for x, y in moments for k in x)


def assert_same_steps(one: Path, other: Path, base: Path) -> None:
    """Check that two runs went the same way, but for the rounding of sums: by the largest difference."""
    a, b = checkpoint(one)["params"], checkpoint(other)["params"]
    source = find_source(base)
    start = load_base(source.config, source.base, device=CPU, dtype=torch.float32).unet.state_dict()
    assert a.keys() == b.keys()
    moved = {
        key: (a[key] - start[key.removeprefix(BASE)]).abs().max()
        for key in a
        if key.removeprefix(BASE) in start
    }
    assert max(moved.values()) > 1e-3
    for key in a:
        assert (a[key] - b[key]).abs().max() < 1e-3 * max(moved.values()), key


def tiny_model(**options: Any) -> ControlledUNet:
    config = tiny_config()
    return ControlledUNet(tiny_networks(config).unet, tiny_control(config, "canny"), **options)


def backward(model: ControlledUNet) -> Tensor:
    """Compute the gradients of a fixed loss; return it."""
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(5))
    picture = torch.from_numpy(hint()).permute(2, 0, 1)[None].float().div(255).repeat(2, 1, 1, 1)
    out = model(latents(2), torch.tensor([10, 700]), context, picture)
    loss = out.float().pow(2).mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "unlocked"])
def test_a_step_is_the_originals(locked: bool, tmp_path: Path) -> None:
    golden = load_golden("train_small")
    model = ControlledUNet(
        materialise(UNet(SMALL_UNET), "model.diffusion_model.", "public-small"),
        materialise(ControlNet(SMALL_UNET, SMALL_CONTROL), "control_model.", "public-small"),
        sd_locked=locked,
    )
    loop = LoopConfig(
        output=tmp_path, steps=1, learning_rate=RATE, warmup=0, ema_decay=0, clip_norm=0, epsilon=ADAM_EPSILON
    )
    run = ControlRun("", tmp_path, "own", loop, sd_locked=locked, decoder_rate=RATE)
    trainer, shared = make_trainer(run, model, ALONE)
    named = {
        ("model.diffusion_model." + n.removeprefix(BASE) if n.startswith(BASE) else "control_model." + n): p
        for n, p in model.trained()
    }
    kind = "delta_locked" if locked else "delta_unlocked"
    deltas = {k.removeprefix(kind + "."): v for k, v in golden.items() if k.startswith(kind + ".")}
    assert deltas and deltas.keys() <= named.keys()
    before = {key: named[key].detach().clone() for key in deltas}
    criterion = DiffusionLoss(ScheduleConfig())

    def loss(batch: int, generator: torch.Generator) -> Tensor:
        x_t = criterion.noised(golden["x_start"], golden["noise"], golden["t"])
        prediction = shared(x_t, golden["t"], golden["context"], golden["hint"])
        return criterion(prediction, golden["x_start"], golden["noise"], golden["t"])

    value, _ = trainer.one_step(loss)
    assert value == pytest.approx(float(golden["loss"]), rel=1e-6)
    gradients = ("grad.", "grad_decoder.") if not locked else ("grad.",)
    for prefix in gradients:
        names = [name for name in golden if name.startswith(prefix)]
        assert names
        for name in names:
            grad, want = named[name.removeprefix(prefix)].grad, golden[name].flatten()
            assert grad is not None
            own = grad.flatten() if grad.numel() == want.numel() else sampled(grad)
            assert (own - want).abs().max() / want.abs().max() < MARGIN * GRADIENT_NOISE
    for key, want in deltas.items():
        delta = named[key].detach() - before[key]
        own = delta.flatten() if delta.shape == want.shape else sampled(delta)
        assert (own - want.flatten()).abs().max() < 0.05 * RATE
    assert all(group["weight_decay"] == 0.01 for group in trainer.optimizer.param_groups)


def test_the_optimiser_knows_the_trainable_half_alone(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = Trainer(model.trained(), LoopConfig(output=tmp_path, steps=1, ema_decay=0))
    trainer.one_step(lambda batch, generator: backward_free(model))
    own = {id(p) for p in model.net.parameters()}
    assert {id(p) for p in trainer.optimizer.state} == own
    assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters())


def backward_free(model: ControlledUNet) -> Tensor:
    context = torch.zeros(2, 77, 32)
    return model(latents(2), torch.tensor([10, 700]), context, torch.zeros(2, 3, 64, 64)).pow(2).mean()


@pytest.mark.parametrize("sd_locked", [True, False])
def test_nothing_of_the_locked_encoder_is_kept_for_the_gradient(sd_locked: bool) -> None:
    model = tiny_model(sd_locked=sd_locked)
    watched: list[bool] = []
    for block in (*model.unet.input_blocks, model.unet.middle_block):
        block.register_forward_hook(
            lambda m, a, out: watched.append(out.requires_grad or torch.is_grad_enabled())
        )
    backward(model)
    assert watched and not any(watched)
    with_gradient = {name for name, p in model.unet.named_parameters() if p.grad is not None}
    decoder = {n for n, _ in model.unet.named_parameters() if n.startswith(("output_blocks.", "out."))}
    assert with_gradient == (set() if sd_locked else decoder)


def test_gradient_checkpointing_gives_the_same_gradients_bit_for_bit() -> None:
    plain, thrifty = tiny_model(sd_locked=False), tiny_model(sd_locked=False, recompute=True)
    kept: list[int] = []
    for model in (plain, thrifty):
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backward(model)
        kept.append(saved)
    for (name, a), (_, b) in zip(plain.trained(), thrifty.trained(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
    assert kept[1] < kept[0] / 2


def test_only_mid_control_leaves_the_skips_alone() -> None:
    model = tiny_model(only_mid_control=True)
    backward(model)
    assert all(p.grad is None for conv in model.net.zero_convs for p in conv.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.net.middle_block_out.parameters())
    assert not torch.equal(backward(model), backward(tiny_model()))


def test_an_unlocked_decoder_learns_at_its_own_rate(tmp_path: Path, base: Path, circles: Path) -> None:
    run = own_run(base, circles, tmp_path, sd_locked=False, decoder_rate=2e-4, learning_rate=1e-3)
    model = tiny_model(sd_locked=False)
    trainer, _ = make_trainer(run, model, ALONE)
    trainer.one_step(lambda batch, generator: backward_free(model))
    rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in model.trained():
        assert rates[id(p)] == pytest.approx(2e-4 if name.startswith(BASE) else 1e-3)
        assert decoder_factor(run)(name) == pytest.approx(0.2 if name.startswith(BASE) else 1.0)


def test_five_and_five_steps_equal_ten_bit_for_bit(base: Path, circles: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ema_decay": 0.9, "drop_prompts": 0.3, "decay": 4}
    whole = own_run(base, circles, tmp_path / "whole", steps=10, **options)
    train_controlnet(whole)
    halves = own_run(base, circles, tmp_path / "halves", steps=10, **options)
    monkey = replace(halves, loop=replace(halves.loop, minutes=0.0))  # ends after one step
    for _ in range(5):
        train_controlnet(monkey)
    assert checkpoint(tmp_path / "halves")["step"] == 5
    train_controlnet(halves)
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves")
    assert a["step"] == b["step"] == 10 and same(a, b)
    assert all(torch.equal(a["ema"][k], b["ema"][k]) for k in a["ema"])


def test_what_is_trained_loads_as_a_model_and_is_obeyed(base: Path, circles: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train_controlnet(own_run(base, circles, output, learning_rate=1e-2, validate_every=2, validate_count=2))
    pipe = load_pipeline(output / "model.yaml", device="cpu", dtype="float32")
    assert pipe.available_controls() == ("own",)
    free = Request("a red circle", size=(64, 64), steps=2, seed=1)
    held = replace(free, controls=(ControlUnit("own", hint()),))
    assert not np.array_equal(pipe(free).images[0], pipe(held).images[0])
    assert sorted(p.name for p in (output / "samples").iterdir()) == [
        "step_00000002.png",
        "step_00000004.png",
    ]


def test_a_lighter_network_is_trained_and_loads_as_what_it_is(
    base: Path, circles: Path, tmp_path: Path
) -> None:
    train_controlnet(own_run(base, circles, tmp_path, variant="lite", steps=2))
    source = find_source(tmp_path / "model.yaml")
    assert source.config.control.variant == "full"  # that of the base's other controls
    net = load_control(source.config, source.locate_control("own"), device=CPU, dtype=torch.float32)
    assert isinstance(net, LiteControlNet)


def test_an_unlocked_decoder_is_exported_with_the_base(base: Path, circles: Path, tmp_path: Path) -> None:
    run = own_run(base, circles, tmp_path, sd_locked=False, decoder_rate=1e-2)
    train_controlnet(run)
    source = find_source(tmp_path / "model.yaml")
    assert source.base == tmp_path / "own.safetensors"
    loaded = load_base(source.config, source.base, device=CPU, dtype=torch.float32)
    before = tiny_networks(tiny_config())
    trained = checkpoint(tmp_path)["params"]
    for name, value in loaded.unet.state_dict().items():
        want = trained.get(BASE + name, before.unet.state_dict()[name])
        assert torch.equal(value, want.half().float()), name
    assert load_pipeline(tmp_path / "model.yaml", device="cpu").available_controls() == ("own",)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_the_locked_half_is_stored_in_16_bits_and_what_learns_in_32(
    base: Path, circles: Path, tmp_path: Path, precision: torch.dtype
) -> None:
    run = own_run(base, circles, tmp_path, precision=precision, loss_scale=2.0**14, sd_locked=False, steps=2)
    train_controlnet(run)
    assert all(value.dtype == torch.float32 for value in checkpoint(tmp_path)["params"].values())
    model = tiny_model(sd_locked=False, precision=precision)
    dtypes = {n: p.dtype for n, p in model.unet.named_parameters()}
    assert {d for n, d in dtypes.items() if n.startswith(("output_blocks.", "out."))} == {torch.float32}
    assert {d for n, d in dtypes.items() if not n.startswith(("output_blocks.", "out."))} == {precision}


def test_float16_finds_a_scale_at_which_gradients_are_finite(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    trainer = Trainer([("w", weight)], LoopConfig(output=tmp_path, steps=1, loss_scale=2.0**20, clip_norm=0))
    # float16 ends at 65504: of these scales, 2**15 is the first whose gradient fits.
    trainer.one_step(lambda batch, generator: (weight.half() * 1.5).float().sum())
    assert trainer.loss_scale == 2.0**15 and weight.item() != 1.0


def test_an_optimiser_in_main_memory_takes_the_same_steps(base: Path, circles: Path, tmp_path: Path) -> None:
    train_controlnet(own_run(base, circles, tmp_path / "a", ema_decay=0.9))
    train_controlnet(own_run(base, circles, tmp_path / "b", ema_decay=0.9, offload=True))
    assert same(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_accumulated_batches_take_the_steps_of_a_large_one(base: Path, circles: Path, tmp_path: Path) -> None:
    train_controlnet(own_run(base, circles, tmp_path / "large", batch=4, **STEADY))
    train_controlnet(own_run(base, circles, tmp_path / "small", batch=1, accumulate=4, **STEADY))
    assert_same_steps(tmp_path / "large", tmp_path / "small", base)


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(
    base: Path, circles: Path, tmp_path: Path
) -> None:
    told = [str(path) for path in (base, circles, tmp_path / "two")]
    options = {**STEADY, "only_mid_control": True, "sd_locked": False, "accumulate": 2}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [*torchrun, "-m", "tests.training.own_data", *told, json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(worker, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    train_controlnet(own_run(base, circles, tmp_path / "one", **{**options, "batch": 4}))
    assert_same_steps(tmp_path / "one", tmp_path / "two", base)


def _batches(base: Path, circles: Path, tmp_path: Path, drop: float, cached: bool = False) -> PairBatches:
    source = find_source(base)
    data = open_pairs(circles, (64, 64), tmp_path, quiet=True)
    encoder = Encoder(load_base(source.config, source.base, device=CPU, dtype=torch.float32), CPU)
    if cached:
        Cache.make(tmp_path / "cache", data, encoder, "tiny")
    found = Cache(tmp_path / "cache", data) if cached else encoder
    return PairBatches(data, Share(3), 0, source=found, timesteps=1000, drop_prompts=drop, device=CPU)


def test_an_epoch_shows_every_pair_once_in_an_order_of_its_own(
    base: Path, circles: Path, tmp_path: Path
) -> None:
    batches = _batches(base, circles, tmp_path, 0.0)
    epochs = [[batches.index(n) for n in range(first, first + 6)] for first in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_a_batch_holds_hints_from_0_to_1_and_cached_latents_are_those_of_the_pictures(
    base: Path, circles: Path, tmp_path: Path
) -> None:
    fresh, cached = (
        _batches(base, circles, tmp_path, 0.5),
        _batches(base, circles, tmp_path, 0.5, cached=True),
    )
    a, b = fresh(1), cached(1)
    assert (
        a.batch.hint.shape == (3, 3, 64, 64)
        and float(a.batch.hint.min()) == 0.0
        and float(a.batch.hint.max()) == 1.0
    )
    assert torch.equal(a.batch.hint, b.batch.hint) and torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t)
    assert torch.allclose(a.batch.x_0, b.batch.x_0, atol=2e-3)
    assert torch.allclose(a.batch.context, b.batch.context, atol=2e-3)


def test_prompts_are_dropped_in_the_said_share(base: Path, circles: Path, tmp_path: Path) -> None:
    batches = _batches(base, circles, tmp_path, 0.3)
    dropped = [batches._draw(number)[0] for number in range(1000)]
    assert sum(dropped) / 1000 == pytest.approx(0.3, abs=0.05)
    assert isinstance(batches.source, Encoder)
    empty = batches.source.context([""])
    kept, none = _batches(base, circles, tmp_path, 0.0)(0), _batches(base, circles, tmp_path, 1.0)(0)
    assert all(torch.allclose(row, empty[0], atol=1e-5) for row in none.batch.context)
    assert not any(torch.allclose(row, empty[0], atol=1e-5) for row in kept.batch.context)


def test_another_base_or_size_is_not_mixed_into_a_run(base: Path, circles: Path, tmp_path: Path) -> None:
    train_controlnet(own_run(base, circles, tmp_path, steps=1))
    with pytest.raises(ValueError, match="holds another run: size was"):
        train_controlnet(own_run(base, circles, tmp_path, steps=2, size=(128, 64)))
    with pytest.raises(ValueError, match="locked now"):
        train_controlnet(own_run(base, circles, tmp_path / "open", steps=1, sd_locked=False))
        train_controlnet(own_run(base, circles, tmp_path / "open", steps=2))


def test_a_locked_run_may_be_unlocked_later(base: Path, circles: Path, tmp_path: Path) -> None:
    train_controlnet(own_run(base, circles, tmp_path, steps=2))
    before = checkpoint(tmp_path)
    train_controlnet(own_run(base, circles, tmp_path, steps=3, sd_locked=False))
    after = checkpoint(tmp_path)
    assert after["step"] == 3 and before["params"].keys() < after["params"].keys()


def test_a_control_for_another_base_is_told(base: Path, circles: Path, tmp_path: Path) -> None:
    canny = Path(__file__).parents[2] / "ckpts" / "demo" / "canny.safetensors"
    with pytest.raises(CheckpointMismatch, match="a ControlNet for"):
        train_controlnet(own_run(base, circles, tmp_path, start=canny))
    with pytest.raises(CheckpointMismatch, match="canny.safetensors"):
        train_controlnet(own_run(canny, circles, tmp_path / "base"))


def test_a_loss_that_is_not_finite_names_the_pictures_and_the_last_good_checkpoint(
    base: Path, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_controlnet(own_run(base, circles, tmp_path, steps=2))
    good = (tmp_path / "step_00000002.pt").read_bytes()
    monkeypatch.setattr(DiffusionLoss, "__call__", lambda self, p, x, n, t: p.sum() * float("nan"))
    with pytest.raises(
        SuiteError, match=r"Step 2: the loss is not finite \(nan\)(.|\n)*step_00000002.pt"
    ) as told:
        train_controlnet(own_run(base, circles, tmp_path, steps=4))
    assert str(told.value).count(".png") == 2
    assert [p.name for p in tmp_path.glob("*.pt")] == ["step_00000002.pt"]
    assert (tmp_path / "step_00000002.pt").read_bytes() == good


def test_a_picture_that_vanishes_in_the_middle_loses_no_step(
    base: Path, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PairBatches.__call__

    def fails_at_third(self: PairBatches, batch: int) -> Any:
        if batch == 2:
            raise SuiteError("target/4.png can no longer be read.")
        return original(self, batch)

    monkeypatch.setattr(PairBatches, "__call__", fails_at_third)
    with pytest.raises(SuiteError, match="can no longer be read"):
        train_controlnet(own_run(base, circles, tmp_path / "broken", steps=4))
    assert checkpoint(tmp_path / "broken")["step"] == 2
    monkeypatch.undo()
    train_controlnet(own_run(base, circles, tmp_path / "broken", steps=4))
    train_controlnet(own_run(base, circles, tmp_path / "whole", steps=4))
    assert same(checkpoint(tmp_path / "broken"), checkpoint(tmp_path / "whole"))


def test_a_fresh_copy_does_not_change_the_loss(base: Path, circles: Path, tmp_path: Path) -> None:
    source = find_source(base)
    networks = load_base(source.config, source.base, device=CPU, dtype=torch.float32)
    run = own_run(base, circles, tmp_path)
    batches = _batches(base, circles, tmp_path, 0.0)
    model = build_model(run, source, networks, CPU)
    criterion = DiffusionLoss(source.config.schedule)
    with torch.no_grad():
        loss = loss_of(model, batches, criterion)(0, torch.Generator())
        drawn = batches(0)
        x_t = criterion.noised(drawn.batch.x_0, drawn.noise, drawn.t)
        plain = criterion(
            networks.unet(x_t, drawn.t, drawn.batch.context), drawn.batch.x_0, drawn.noise, drawn.t
        )
    assert float(loss) == float(plain)


def test_tensorboard_gets_figures_and_pictures(base: Path, circles: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_controlnet(own_run(base, circles, tmp_path, tensorboard=True, validate_every=4, validate_count=1))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    with (tmp_path / "loss.csv").open() as file:
        losses = [float(line.split(",")[1]) for line in file]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, abs=1e-6)
    assert [event.step for event in events.Images("validation")] == [4]


def test_without_tensorboard_the_message_says_how_to_get_it(
    base: Path, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SuiteError, match="pip install tensorboard"):
        train_controlnet(own_run(base, circles, tmp_path, tensorboard=True))
