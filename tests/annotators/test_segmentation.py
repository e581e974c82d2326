"""The segmentation detector: what the original paints from the same logits, and that it bears any picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from annotators import segmentation
from annotators.ade20k import CLASSES, PALETTE, share_in_palette, to_colours
from annotators.base import Annotation
from annotators.maps import swap_red_and_blue
from annotators.nets.uniformer import UniFormerConfig, UperNet
from annotators.networks import NetworkCache
from annotators.segmentation import Segmentation, find_classes, fit, labels, shares
from core.errors import CheckpointMismatch, WeightsMissing
from core.weights.registry import Registry
from tests.annotators.test_ade20k import PERSON, SKY, areas
from tests.deterministic_weights import fill_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "segmentation"
NARROW = UniFormerConfig(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_dim=8, width=16)
FILE = "upernet_global_small.pth"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    networks = NetworkCache()
    networks.configure(device="cpu", dtype="float32")
    monkeypatch.setattr(segmentation, "NETWORKS", networks)
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def narrow(folder: Path) -> UperNet:
    net = UperNet(NARROW)
    fill_tensors(net.state_dict().items(), "narrow", lambda key: 1.5)
    auxiliary = {"auxiliary_head.conv_seg.weight": torch.zeros(150, 4, 1, 1)}
    save_file(net.state_dict() | auxiliary, folder / FILE, {"config": NARROW.to_json()})
    return net.eval().requires_grad_(False)


def noise(*size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def test_the_map_is_the_originals() -> None:
    logits = load_file(GOLDEN / "logits.safetensors")["synth.logits"]
    expected = np.asarray(Image.open(GOLDEN / "seg.png"))
    found = labels(logits, expected.shape[:2])[0].numpy()
    assert np.array_equal(to_colours(found), expected)
    assert len(np.unique(found)) > 20


@pytest.mark.parametrize("sizes", [((64, 96),), ((64, 96), (40, 100)), ((50, 50), (128, 20)), ((16, 24),)])
def test_leaving_out_classes_that_cannot_win_changes_no_label(sizes: tuple[tuple[int, int], ...]) -> None:
    logits = torch.randn(1, 150, 16, 24, generator=torch.Generator().manual_seed(1))
    logits[:, 20:, 4:] -= 6  # most classes are possible in the first rows alone
    logits[:, 75:] -= 20  # and half of them nowhere
    enlarged = logits
    for size in sizes:
        enlarged = F.interpolate(enlarged, size, mode="bilinear", align_corners=False)
    assert torch.equal(labels(logits, *sizes), enlarged.argmax(1))


def test_logits_that_are_no_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="not numbers: get the weights anew"):
        labels(torch.full((1, 150, 4, 4), torch.nan), (8, 8))


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((384, 448), (512, 597)),  # the short side 512
        ((576, 384), (768, 512)),
        ((64, 2048), (64, 2048)),  # the long side no more than 2048
        ((100, 500), (410, 2048)),
        ((1, 1), (512, 512)),
        ((20, 3000), (32, 2048)),  # and never less than the network needs
    ],
)
def test_the_network_sees_the_originals_size(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert fit(np.zeros((*size, 3), np.uint8)).shape == (1, 3, *seen)


def test_colours_are_normalised_channel_by_channel() -> None:
    flat = np.full((512, 512, 3), (255, 0, 124), np.uint8)
    expected = [(255 - 123.675) / 58.395, -116.28 / 57.12, (124 - 103.53) / 57.375]
    np.testing.assert_allclose(fit(flat)[0, :, 100, 100], expected, rtol=1e-6)


def test_the_detector_paints_the_networks_labels(narrow: UperNet) -> None:
    picture = noise(64, 96, 3)
    found = find_classes(picture)
    plain = F.interpolate(narrow(fit(picture)), (512, 768), mode="bilinear", align_corners=False)
    expected = F.interpolate(plain, (64, 96), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
    assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 1


def test_by_default_the_network_gets_blue_for_red_as_in_the_original(narrow: UperNet) -> None:
    picture = noise(128, 128, 3)
    made = Segmentation()(picture, size=(128, 128), resolution=128)
    true = Segmentation()(picture, size=(128, 128), resolution=128, original_channel_order=False)
    swapped = np.ascontiguousarray(picture[:, :, ::-1])
    again = Segmentation()(swapped, size=(128, 128), resolution=128, original_channel_order=False)
    assert np.array_equal(made.hint, again.hint) and not np.array_equal(made.hint, true.hint)
    assert np.array_equal(made.hint, to_colours(find_classes(swapped)))


def test_the_hint_has_only_class_colours_and_the_data_their_shares(narrow: UperNet) -> None:
    made = Segmentation()(noise(100, 150, 3), size=(192, 256), resolution=128)
    assert made.hint.shape == (192, 256, 3) and np.array_equal(made.hint, made.preview)
    assert share_in_palette(made.hint) == 1
    assert made.data is not None
    found = json.loads(json.dumps(made.data))["classes"]
    assert set(found) <= set(CLASSES) and sum(found.values()) == pytest.approx(1, abs=0.01)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_shares_are_those_of_the_pixels_largest_first() -> None:
    classes = np.array([[SKY, SKY, SKY, PERSON]], np.uint8)
    assert shares(classes) == {"sky": 0.75, "person": 0.25}


def pictures() -> dict[str, NDArray[np.generic] | Image.Image]:
    return {
        "grey": noise(50, 70),
        "rgba": noise(50, 70, 4),
        "16 bit": np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16),
        "one pixel": np.full((1, 1, 3), 90, np.uint8),
        "flat wide": noise(20, 3000, 3),
        "tall": noise(3000, 20, 3),
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((64, 64, 3), 255, np.uint8),
        "noise": noise(64, 64, 3),
        "pillow palette": Image.fromarray(noise(50, 70, 3)).convert("P"),
    }


@pytest.mark.parametrize("kind", list(pictures()))
def test_any_picture_gives_a_hint_of_the_asked_size(kind: str, narrow: UperNet) -> None:
    made = Segmentation()(pictures()[kind], size=(128, 192), resolution=128)
    for array in (made.hint, made.preview):
        assert array.shape == (128, 192, 3) and array.dtype == np.uint8 and array.flags.c_contiguous
    assert share_in_palette(made.hint) == 1


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (3000, 20)])
def test_the_network_bears_sizes_that_were_not_fitted(size: tuple[int, int], narrow: UperNet) -> None:
    assert find_classes(noise(*size, 3)).shape == size


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    with pytest.raises(WeightsMissing, match="python -m core.weights get uniformer"):
        Segmentation()(noise(8, 8, 3), size=(64, 64))


def test_a_file_of_another_network_is_refused(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / FILE, {"config": NARROW.to_json()})
    with pytest.raises(CheckpointMismatch, match="does not hold the weights called uniformer"):
        Segmentation()(noise(8, 8, 3), size=(64, 64))


def ready(given: NDArray[np.uint8], side: int = 64, mend: bool = False) -> Annotation:
    return Segmentation().ready(given, size=(side, side), mend=mend)


def test_a_brought_map_in_the_palette_stays_as_it_is() -> None:
    given = to_colours(areas())
    made = ready(given)
    assert np.array_equal(made.hint, given) and made.note == ""


def test_colours_that_are_not_in_the_palette_are_snapped_and_counted() -> None:
    given = to_colours(areas()).copy()
    given[:2] = PALETTE[SKY] - 3  # 3.1 % of the pixels
    made = ready(given)
    assert np.array_equal(made.hint, to_colours(areas()))
    assert made.note == (
        "3 % of the pixels had colours that are not in the palette; they took the nearest class's."
    )
    given = to_colours(areas()).copy()
    given[0, 0] += 1
    assert ready(given).note.startswith("Less than 1 % of the pixels")


def test_a_share_just_below_all_is_not_called_all() -> None:
    given = noise(64, 64, 3)
    given[0, 0] = PALETTE[SKY]
    assert ready(given).note.startswith("More than 99 %")


@pytest.mark.parametrize("side", [32, 100, 256])
def test_a_map_of_grey_classes_gets_no_other_greys_by_resizing(side: int) -> None:
    greys = [CLASSES.index(name) for name in ("wall", "road", "windowpane", "rug")]
    classes = np.repeat(np.array(greys, np.uint8), 16)[None].repeat(64, axis=0)
    made = ready(to_colours(classes), side)
    assert {tuple(c) for c in np.unique(made.hint.reshape(-1, 3), axis=0)} == {
        tuple(PALETTE[i]) for i in greys
    }


def test_swapped_red_and_blue_is_told_and_can_be_mended() -> None:
    given = swap_red_and_blue(to_colours(areas()))
    made = ready(given)
    assert "red and blue seem to be the other way round" in made.note and "swapped kind" in made.note
    mended = ready(given, mend=True)
    assert mended.note == "" and np.array_equal(mended.hint, to_colours(areas()))
