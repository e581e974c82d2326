"""The evaluation of the demo model tells obeying from not obeying, and its judge from chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from core.errors import NumericalError, WeightsMissing
from core.loading import load_pipeline
from core.pipeline import ControlNetPipeline
from core.request import Request
from core.training import classifier
from core.training import evaluate as evaluation
from core.training.classifier import (
    SIDE,
    SOFTNESS,
    Classifier,
    Judge,
    accuracy,
    as_from_memory,
    half_forgotten,
    load_or_train,
    pasted,
    places,
    single_things,
)
from core.training.detectors import measures
from core.training.evaluate import evaluate, starts_as_nothing
from core.training.evaluate_controls import Drawn, obedience
from core.training.hints import CONTROLS
from core.training.norms import settle
from core.training.toyworld.places import PAINTERS
from core.weights.registry import Registry
from tests.training.test_toyworld import LIBRARY

Change = Callable[[NDArray[np.float32], random.Random], NDArray[np.float32]]


class Perfect:
    """Draws the very scene of a caption if it is told a control, else a grey picture."""

    controls = CONTROLS
    resolution = 128
    config = SimpleNamespace(cfg_scale=4.0)

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.scenes: dict[str, np.ndarray] = {}

    def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        height, width = request.size or (128, 128)
        picture = np.full((height, width, 3), 128, np.uint8)
        if request.controls:
            picture = self.scenes[request.prompt]
        return SimpleNamespace(images=[picture], seconds=0.5)


@pytest.fixture
def drawn() -> Drawn:
    pipe = Perfect()
    made = Drawn(cast(ControlNetPipeline, pipe), LIBRARY, 3, 2)
    for scenes in made.sets.values():
        pipe.scenes |= {scene.caption: scene.image for scene in scenes}
    return made


def test_the_scene_itself_obeys_its_edges_and_no_other_ones(drawn: Drawn) -> None:
    found = obedience(drawn, "canny")
    assert found.obeyed == found.scene == 1.0
    assert max(found.shuffled, found.uncontrolled) < 0.7
    assert found.row().startswith("| canny | edge F1 at 3 px | canny | 3 | 1.000 |")


def test_a_picture_is_drawn_once_and_its_hint_is_the_scenes(drawn: Drawn) -> None:
    requests = cast(Perfect, drawn.pipe).requests
    obedience(drawn, "canny")
    assert len(requests) == 6 and len({(r.prompt, bool(r.controls)) for r in requests}) == 6
    obedience(drawn, "canny")
    drawn.pictures(None, False)
    assert len(requests) == 6


def test_pictures_drawn_together_are_those_drawn_alone() -> None:
    pipe = load_pipeline("demo", device="cpu", dtype="float32")
    alone, together = (Drawn(pipe, LIBRARY, 3, 2, batch) for batch in (1, 2))
    for one, other in zip(alone.pictures("canny", False), together.pictures("canny", False), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert len(together.seconds) == 3
    label, seconds, _ = evaluation._speed(together, 2)
    assert label.endswith("after the first, 2 at once")
    assert float(seconds) == pytest.approx(together.seconds[2], abs=0.006)


def test_an_error_of_one_picture_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Perfect()
    monkeypatch.setattr(
        pipe, "sample_together", lambda requests: iter([(1, NumericalError("not finite"))]), raising=False
    )
    with pytest.raises(NumericalError, match="not finite"):
        Drawn(cast(ControlNetPipeline, pipe), LIBRARY, 2, 2, 2).pictures(None, False)
    with pytest.raises(ValueError, match="batch is 33: give a whole number from 1 to 32"):
        Drawn(cast(ControlNetPipeline, pipe), LIBRARY, 2, 2, 33)


def test_every_control_is_measured_by_what_its_detector_finds(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(measures.MEASURES) == set(CONTROLS)
    by_image = {scene.image.tobytes(): scene for scenes in drawn.sets.values() for scene in scenes}
    monkeypatch.setattr(measures.Measure, "check", lambda self: None)
    for name in ("depth", "seg", "openpose", "normal"):
        measure = measures.MEASURES[name]
        scenes = drawn.sets[measure.people]
        true = [measure.true(scene) for scene in scenes]
        found = [measure.true(by_image[scene.image.tobytes()]) for scene in scenes]
        best, other = measure.score(found, true), measure.score(found, true[1:] + true[:1])
        if name == "normal":
            assert best == pytest.approx(0, abs=1e-3) and other > 5
        else:
            assert best == pytest.approx(1) and other < 0.9


def test_a_missing_detector_is_named_with_the_way_to_get_it(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    with pytest.raises(WeightsMissing, match="python -m core.weights get uniformer"):
        obedience(drawn, "seg")


def test_the_report_has_every_figure(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    class Namer:
        def name(self, images: Sequence[np.ndarray]) -> list[str]:
            return ["car"] * len(images)

    for name, value in (("psnr", 30.0), ("starts_as_nothing", True)):
        monkeypatch.setattr(evaluation, name, lambda *_, value=value: value)
    monkeypatch.setattr(evaluation, "Drawn", lambda *_: drawn)
    pipe = cast(Perfect, drawn.pipe)
    pipe.scenes |= {scene.caption: scene.image for scene in single_things(LIBRARY, 3, 128)}
    pipe.networks = SimpleNamespace(vae=None)  # type: ignore[attr-defined]
    pipe.controls = ("canny",)
    table = evaluate(cast(ControlNetPipeline, pipe), LIBRARY, cast(Judge, Namer()), 3).table()
    for words in (
        "PSNR | 30.0 dB",
        "named thing found, no control",
        "bit for bit | true",
        "| 0.50 |",
        "| canny |",
    ):
        assert words in table


def test_the_bundled_model_starts_a_control_as_nothing() -> None:
    assert starts_as_nothing(load_pipeline("demo", device="cpu", dtype="float32"))


@pytest.mark.parametrize("softness", SOFTNESS)
def test_the_judge_sees_one_thing_of_the_library_on_a_place(softness: classifier.Softness) -> None:
    grounds = places(random.Random(0))
    picture, number = pasted(LIBRARY, grounds, softness, random.Random(3))
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    assert 0 <= number < len(LIBRARY.specs)
    assert not any(np.array_equal(picture, ground) for ground in grounds)
    again, same = pasted(LIBRARY, grounds, softness, random.Random(3))
    assert same == number and np.array_equal(picture, again)


@pytest.mark.parametrize("change", [as_from_memory, half_forgotten])
def test_a_thing_from_memory_is_changed_but_the_same_thing(change: Change) -> None:
    sprite = LIBRARY.sprite(LIBRARY.specs[0].name).at(40, 60).astype(np.float32)
    bent = [change(sprite, random.Random(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(bent[0], bent[1])
    assert not np.array_equal(bent[0], bent[2])
    for thing in bent:
        assert thing.shape == sprite.shape
        assert (thing[..., :3] >= 0).all() and (thing[..., :3] <= thing[..., 3:] + 1e-3).all()
        there, was = thing[..., 3] > 127, sprite[..., 3] > 127
        assert (there & was).sum() > 0.7 * (there | was).sum()


@pytest.mark.parametrize("change, colours", [(as_from_memory, "BLOTCH"), (half_forgotten, "STAIN")])
def test_bending_colours_and_missing_parts_each_change_what_they_should(
    change: Change, colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprite = LIBRARY.sprite(LIBRARY.specs[0].name).at(40, 60).astype(np.float32)
    sprite[..., :3] = np.minimum(sprite[..., :3], sprite[..., 3:])
    without = {"BEND": 0.0, colours: 0.0, "GONE": 1e9}  # no noise comes up to that

    def changed(kept: str, seed: int = 1) -> NDArray[np.float32]:
        with monkeypatch.context() as patch:
            for name in set(without) - {kept}:
                patch.setattr(classifier, name, without[name])
            return change(sprite, random.Random(seed))

    assert np.array_equal(changed(""), sprite)
    assert not np.array_equal(changed("BEND")[..., 3], sprite[..., 3])
    coloured = changed(colours)
    assert np.array_equal(coloured[..., 3], sprite[..., 3])
    assert not np.array_equal(coloured, sprite)
    lost = [1 - changed("GONE", seed)[..., 3].sum() / sprite[..., 3].sum() for seed in range(20)]
    assert min(lost) == 0 and (0 < np.mean(lost) < 0.15) == (change is half_forgotten)


def always(name: str, certain: float) -> Classifier:
    """Return a network that names every thing so, as surely as ``certain`` says."""
    net = Classifier([spec.name for spec in LIBRARY.specs]).eval()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()[net.names.index(name)] += certain
    return net


def test_the_judge_is_right_when_it_names_the_thing_of_the_scene() -> None:
    scenes = single_things(LIBRARY, 4, 64)
    assert all(len(scene.objects) == 1 and scene.held_out in (True, False) for scene in scenes)
    wanted = scenes[0].objects[0].name
    expected = np.mean([scene.objects[0].name == wanted for scene in scenes])
    assert accuracy(Judge([always(wanted, 10.0)]), scenes, [scene.image for scene in scenes]) == expected


def test_the_surer_of_the_judges_networks_has_its_way() -> None:
    first, second = LIBRARY.specs[0].name, LIBRARY.specs[1].name
    picture = [np.zeros((64, 64, 3), np.uint8)]
    assert Judge([always(first, 3.0), always(second, 9.0)]).name(picture) == [second]
    assert Judge([always(first, 9.0), always(second, 3.0)]).name(picture) == [first]


def test_each_network_of_the_judge_learns_from_its_own_softness_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STEPS", 2), ("NORM_BATCHES", 1), ("PLACES", len(PAINTERS))):
        monkeypatch.setattr(classifier, name, value)
    seen: list[classifier.Softness] = []
    real = classifier.pasted

    def watched(library: Any, grounds: Any, softness: classifier.Softness, rng: random.Random) -> Any:
        seen.append(softness)
        return real(library, grounds, softness, rng)

    monkeypatch.setattr(classifier, "pasted", watched)
    judge = load_or_train(LIBRARY, tmp_path, torch.device("cpu"))
    assert len(judge.networks) == len(SOFTNESS) == 2
    learned = 3 * 64  # two steps, and a batch for the normalisations
    assert seen == [SOFTNESS[0]] * learned + [SOFTNESS[1]] * learned
    first, second = (net.head.weight for net in judge.networks)
    assert not torch.equal(first, second)
    seen.clear()
    again = load_or_train(LIBRARY, tmp_path, torch.device("cpu"))
    assert len(seen) == 2 * 64  # nothing is learned twice
    assert torch.equal(again.networks[0].head.weight, first)
    assert torch.equal(again.networks[1].head.weight, second)


def test_settled_normalisations_have_the_mean_of_their_batches() -> None:
    norm = nn.BatchNorm2d(2)
    batches = [torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(i)) + i for i in range(3)]
    norm(torch.full((2, 2, 2, 2), 100.0))  # what was seen before does not count
    settle(norm, lambda number: norm(batches[number]), 3)
    assert norm.running_mean is not None and not norm.training
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
