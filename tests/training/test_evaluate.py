"""The evaluation of the demo model tells obeying from not obeying, and its judge from chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import NumericalError, WeightsMissing
from core.loading import load_pipeline
from core.pipeline import ControlNetPipeline
from core.request import Request
from core.training import classifier
from core.training import evaluate as evaluation
from core.training.classifier import (
    SIDE,
    Classifier,
    accuracy,
    as_from_memory,
    pasted,
    places,
    single_things,
)
from core.training.detectors import measures
from core.training.evaluate import evaluate, starts_as_nothing
from core.training.evaluate_controls import Drawn, obedience
from core.training.hints import CONTROLS
from core.training.norms import settle
from core.weights.registry import Registry
from tests.training.test_toyworld import LIBRARY


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
    class Judge:
        def name(self, images: Sequence[np.ndarray]) -> list[str]:
            return ["car"] * len(images)

    for name, value in (("psnr", 30.0), ("starts_as_nothing", True)):
        monkeypatch.setattr(evaluation, name, lambda *_, value=value: value)
    monkeypatch.setattr(evaluation, "Drawn", lambda *_: drawn)
    pipe = cast(Perfect, drawn.pipe)
    pipe.scenes |= {scene.caption: scene.image for scene in single_things(LIBRARY, 3, 128)}
    pipe.networks = SimpleNamespace(vae=None)  # type: ignore[attr-defined]
    pipe.controls = ("canny",)
    table = evaluate(cast(ControlNetPipeline, pipe), LIBRARY, cast(Classifier, Judge()), 3).table()
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


def test_the_judge_sees_one_thing_of_the_library_on_a_place() -> None:
    grounds = places(random.Random(0))
    picture, number = pasted(LIBRARY, grounds, random.Random(3))
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    assert 0 <= number < len(LIBRARY.specs)
    assert not any(np.array_equal(picture, ground) for ground in grounds)
    again, same = pasted(LIBRARY, grounds, random.Random(3))
    assert same == number and np.array_equal(picture, again)


def test_a_thing_from_memory_is_bent_and_blotched_but_the_same_thing() -> None:
    sprite = LIBRARY.sprite(LIBRARY.specs[0].name).at(40, 60).astype(np.float32)
    bent = [as_from_memory(sprite, random.Random(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(bent[0], bent[1])
    assert not np.array_equal(bent[0], bent[2])
    for thing in bent:
        assert thing.shape == sprite.shape
        assert (thing[..., :3] >= 0).all() and (thing[..., :3] <= thing[..., 3:]).all()
        there, was = thing[..., 3] > 127, sprite[..., 3] > 127
        assert (there & was).sum() > 0.7 * (there | was).sum()


def test_bending_moves_a_thing_and_blotches_change_its_colours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sprite = LIBRARY.sprite(LIBRARY.specs[0].name).at(40, 60).astype(np.float32)
    sprite[..., :3] = np.minimum(sprite[..., :3], sprite[..., 3:])
    monkeypatch.setattr(classifier, "BEND", 0.0)
    blotched = as_from_memory(sprite, random.Random(1))
    assert np.array_equal(blotched[..., 3], sprite[..., 3])
    assert not np.array_equal(blotched, sprite)
    monkeypatch.setattr(classifier, "BLOTCH", 0.0)
    assert np.array_equal(as_from_memory(sprite, random.Random(1)), sprite)
    monkeypatch.undo()
    monkeypatch.setattr(classifier, "BLOTCH", 0.0)
    assert not np.array_equal(as_from_memory(sprite, random.Random(1))[..., 3], sprite[..., 3])


def test_the_judge_is_right_when_it_names_the_thing_of_the_scene() -> None:
    scenes = single_things(LIBRARY, 4, 64)
    assert all(len(scene.objects) == 1 and scene.held_out in (True, False) for scene in scenes)
    net = Classifier([spec.name for spec in LIBRARY.specs]).eval()
    wanted = net.names.index(scenes[0].objects[0].name)
    with torch.no_grad():
        net.head.bias[wanted] += 1e6
    expected = np.mean([scene.objects[0].name == net.names[wanted] for scene in scenes])
    assert accuracy(net, scenes, [scene.image for scene in scenes]) == expected


def test_settled_normalisations_have_the_mean_of_their_batches() -> None:
    norm = nn.BatchNorm2d(2)
    batches = [torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(i)) + i for i in range(3)]
    norm(torch.full((2, 2, 2, 2), 100.0))  # what was seen before does not count
    settle(norm, lambda number: norm(batches[number]), 3)
    assert norm.running_mean is not None and not norm.training
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
