"""The request inside the picture: exact on the way back, and wary of strangers."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.metadata import CHUNK, png_info, read_parameters, read_request, save_png
from core.request import MAX_SEED, SPEED_OPTIONS, ControlUnit, Request
from core.sampling.samplers import SAMPLERS
from core.stored_request import StoredRequest

SCALARS = (
    *("prompt", "negative_prompt", "num_samples", "steps", "sampler", "cfg_scale"),
    *("eta", "seed", "guess_mode", "size", *SPEED_OPTIONS),
)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def hint(seed: int, height: int = 64, width: int = 128) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(request: Request, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    save_png(PICTURE, file, request, **{"seed": request.seed, "model": "demo", **options})
    return io.BytesIO(file.getvalue())


def there_and_back(request: Request, **options: Any) -> StoredRequest:
    return read_request(saved(request, **options))


def assert_same(ours: Request, theirs: Request) -> None:
    for name in SCALARS:
        mine, yours = getattr(ours, name), getattr(theirs, name)
        assert mine == yours and type(mine) is type(yours), name
    assert len(ours.controls) == len(theirs.controls)
    for mine, yours in zip(ours.controls, theirs.controls, strict=True):
        assert np.array_equal(mine.hint, yours.hint)
        for name in ("control", "strength", "start", "end"):
            assert getattr(mine, name) == getattr(yours, name), name


shares = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
units = st.builds(
    lambda control, seed, strength, span: ControlUnit(control, hint(seed), strength, span[0], span[1]),
    st.text(min_size=1, max_size=20),
    st.integers(0, 3),
    st.floats(0, 2),
    shares,
)
requests = st.builds(
    Request,
    prompt=st.text(st.characters(), max_size=80),
    negative_prompt=st.text(st.characters(), max_size=80),
    controls=st.lists(units, max_size=3).map(tuple),
    num_samples=st.integers(1, 12),
    steps=st.integers(1, 1000),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    cfg_scale=st.floats(0.1, 30),
    eta=st.floats(0, 1),
    seed=st.integers(0, MAX_SEED),
    guess_mode=st.booleans(),
    size=st.just((64, 128)),
    control_interval=st.integers(1, 10),
    cache_interval=st.integers(1, 10),
    token_merging_ratio=st.floats(0, 0.75),
)


@given(requests)
@settings(max_examples=60, deadline=None)
def test_every_request_comes_back_exactly(request: Request) -> None:
    assert_same(there_and_back(request).to_request(), request)


def test_speed_options_are_written_only_where_they_are_on() -> None:
    names = [*SPEED_OPTIONS, "Control interval", "DeepCache interval", "Token merging ratio"]
    off = Image.open(saved(Request("x", size=(64, 128)))).info
    assert not any(name in off["parameters"] + off[CHUNK] for name in names)
    options: dict[str, Any] = {"control_interval": 2, "cache_interval": 3, "token_merging_ratio": 0.25}
    on = Image.open(saved(Request("x", size=(64, 128), **options))).info
    assert all(name in on["parameters"] + on[CHUNK] for name in names)
    assert {name: getattr(read_parameters(on["parameters"]), name) for name in options} == options


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "a cat", 'he said "hi", twice', "line\nline\n\n", "Negative prompt: none"),
        *("Steps: 3, Seed: 4", "🐈 café\r\n\0x"),
    ],
)
def test_awkward_prompts_come_back_exactly(prompt: str) -> None:
    request = Request(prompt, negative_prompt=prompt, size=(64, 128))
    assert_same(there_and_back(request).to_request(), request)


def test_a_lone_surrogate_does_not_stop_the_saving() -> None:
    assert there_and_back(Request("odd \ud800", size=(64, 128))).prompt == "odd \ud800"


def test_numpy_numbers_come_back_as_pythons() -> None:
    unit = ControlUnit("canny", hint(0), np.float32(0.1), np.float64(0.25), np.int64(1))
    stored = there_and_back(Request("x", (unit,), seed=np.int64(5)), seed=np.int64(7))
    assert stored.seed == 5 and stored.picture_seed == 7 and type(stored.seed) is int
    assert stored.controls[0].strength == float(np.float32(0.1))


def test_the_pictures_pixels_stay_as_they_were(tmp_path: Path) -> None:
    save_png(PICTURE, tmp_path / "a.png", Request("x", size=(64, 128)), seed=1, model="demo")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), PICTURE)
    assert read_request(tmp_path / "a.png").prompt == "x"


def test_the_pages_settings_the_model_and_the_pictures_seed_come_back() -> None:
    page = {"low_threshold": 100, "added_prompt": "best,\n", "randomize": True, "x": 0.1, "none": None}
    stored = there_and_back(
        Request("x", size=(64, 64), seed=3), seed=5, model="Stable Diffusion 1.5", settings=page
    )
    assert dict(stored.settings) == page
    assert (stored.seed, stored.picture_seed, stored.model) == (3, 5, "Stable Diffusion 1.5")


def test_a_setting_that_is_no_plain_value_is_refused() -> None:
    with pytest.raises(ValueError, match="A setting is a list: give a text"):
        png_info(Request("x", size=(64, 64)), seed=1, model="demo", settings={"a": [1]})  # type: ignore[dict-item]


def test_a_hint_too_large_to_keep_is_named_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.stored_request.MAX_HINT_BYTES", 10)
    stored = there_and_back(Request("x", (ControlUnit("canny", hint(0), 1.5),)))
    assert stored.controls[0].hint is None and len(stored.controls[0].sha256) == 64
    assert stored.controls[0].strength == 1.5
    with pytest.raises(ValueError, match="does not hold the canny hint: make it again"):
        stored.to_request()


def test_many_large_hints_are_named_too_rather_than_make_a_picture_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = len(png_of(hint(0)))
    monkeypatch.setattr("core.stored_request.MAX_HINTS_BYTES", 3 * size + 300)
    for count, kept in ((3, True), (4, False)):
        units = tuple(ControlUnit("canny", hint(i)) for i in range(count))
        stored = there_and_back(Request("x", units))
        assert [unit.hint is not None for unit in stored.controls] == [kept] * count


def png_of(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return file.getvalue()


# The text that other programs read


def text_of(request: Request, **options: Any) -> str:
    file = io.BytesIO()
    save_png(PICTURE, file, request, **{"seed": request.seed, "model": "demo", **options})
    return str(Image.open(io.BytesIO(file.getvalue())).info["parameters"])


def test_the_text_has_the_widely_read_form() -> None:
    unit = ControlUnit("canny", hint(0), 0.75, 0.0, 0.5)
    request = Request("a red car", (unit,), "blurry", seed=12, cfg_scale=7.5, sampler="euler_a")
    assert text_of(request, modules=("Canny edges",)) == (
        "a red car\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12, Size: 128x64, Model: demo, "
        'ControlNet 0: "Module: Canny edges, Model: canny, Weight: 0.75, Guidance Start: 0, '
        'Guidance End: 0.5, Control Mode: Balanced", Version: controlnet-suite'
    )


@given(
    prompt=st.from_regex(r"[a-z ,.:()<>\"\n]{0,40}", fullmatch=True),
    steps=st.integers(1, 1000),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    scale=st.floats(0.1, 30),
    seed=st.integers(0, MAX_SEED),
    guess=st.booleans(),
    strength=st.floats(0, 2),
    span=shares,
)
@settings(deadline=None)
def test_our_own_text_alone_tells_the_request(
    prompt: str,
    steps: int,
    sampler: str,
    scale: float,
    seed: int,
    guess: bool,
    strength: float,
    span: list[float],
) -> None:
    unit = ControlUnit("canny", hint(0), strength, *span)
    request = Request(
        prompt,
        (unit,),
        "bad, worse",
        steps=steps,
        sampler=sampler,
        cfg_scale=scale,
        seed=seed,
        guess_mode=guess,
    )
    found = read_parameters(text_of(request))
    assert found.prompt == prompt.strip() and found.negative_prompt == "bad, worse"
    assert (found.steps, found.sampler, found.cfg_scale, found.seed) == (steps, sampler, scale, seed)
    assert bool(found.guess_mode) == guess and found.size == (64, 128) and found.notes == ()
    assert [(c.control, c.strength, c.start, c.end) for c in found.controls] == [("canny", strength, *span)]


# Hand-made, in the forms that other programs have written over the years.
WEBUI = """masterpiece, (best quality:1.2), 1girl,
walking in the rain <lora:rain:0.8>
Negative prompt: lowres, bad anatomy,
text
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Lora hashes: "rain: a1b2c3, more: d4e5", \
ControlNet 0: "Module: depth_midas, Model: control_v11f1p_sd15_depth [cfd03158], Weight: 0.8, \
Resize Mode: Crop and Resize, Low Vram: False, Processor Res: 512, Guidance Start: 0.1, Guidance End: 0.9, \
Pixel Perfect: True, Control Mode: ControlNet is more important", \
ControlNet 1: "Module: none, Model: t2iadapter_color [8522029d], Weight: 1", Version: v1.9.4"""
OLDER = """a house
Steps: 20, Sampler: DDIM, CFG scale: 9, Seed: 7, Size: 512x512, Model hash: cc6cb27103, \
ControlNet 0: "preprocessor: canny, model: control_sd15_canny [fef5e48e], weight: 1.5, \
starting/ending: (0.2, 0.8), \
resize mode: Just Resize, pixel perfect: False, control mode: Balanced, preprocessor params: (512, 100, 200)"
Time taken: 3.2s"""
OLDEST = """a house
Negative prompt: trees
Steps: 20, Sampler: Euler a, CFG scale: 9.5, Seed: 7, Size: 512x512, ControlNet Enabled: True, \
ControlNet Module: hed, ControlNet Model: control_sd15_hed [fef5e48e], ControlNet Weight: 0.6, \
ControlNet Guidance Start: 0, ControlNet Guidance End: 0.5"""


def test_a_web_ui_text_is_read() -> None:
    found = read_parameters(WEBUI)
    assert found.prompt == "masterpiece, (best quality:1.2), 1girl,\nwalking in the rain <lora:rain:0.8>"
    assert found.negative_prompt == "lowres, bad anatomy,\ntext"
    assert (found.steps, found.sampler, found.cfg_scale, found.seed) == (28, "dpmpp_2m", 7.0, 1_234_567_890)
    assert found.size == (768, 512) and found.model == "v1-5-pruned-emaonly"
    (unit,) = found.controls
    assert (unit.control, unit.strength, unit.start, unit.end, unit.hint) == ("depth", 0.8, 0.1, 0.9, None)
    assert found.guess_mode is True
    assert found.notes == ("The control t2iadapter_color [8522029d] is not known here: choose another.",)


def test_an_older_web_ui_text_is_read() -> None:
    found = read_parameters(OLDER)
    (unit,) = found.controls
    assert (unit.control, unit.strength, unit.start, unit.end) == ("canny", 1.5, 0.2, 0.8)
    assert found.prompt == "a house" and found.negative_prompt == "" and found.steps == 20
    (unit,) = read_parameters(OLDEST).controls
    assert (unit.control, unit.strength, unit.start, unit.end) == ("hed", 0.6, 0.0, 0.5)
    assert read_parameters(OLDEST).negative_prompt == "trees"


def test_what_cannot_be_taken_over_is_told() -> None:
    settings = "Steps: 5000, Sampler: DPM fast, CFG scale: nan, Seed: 4294967295, Size: 500x700"
    found = read_parameters("a\n" + settings)
    assert (found.steps, found.sampler, found.cfg_scale, found.seed, found.size) == (None,) * 5
    told = " ".join(found.notes)
    for word in ("Steps 5000", "DPM fast", "CFG scale nan", "Seed 4294967295", "500x700"):
        assert word in told


def test_a_picture_with_only_the_text_is_read() -> None:
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", WEBUI)
    Image.fromarray(PICTURE).save(file, format="PNG", pnginfo=info)
    assert read_request(io.BytesIO(file.getvalue())).steps == 28


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + WEBUI.encode("utf-16-be"),
        b"UNICODE\0" + WEBUI.encode("utf-16-le"),
        b"ASCII\0\0\0" + WEBUI.encode(),
    ],
    ids=["big", "little", "ascii"],
)
def test_the_text_in_a_camera_note_is_read(kind: str, comment: bytes) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.fromarray(PICTURE).save(file, format=kind, exif=exif)
    found = read_request(io.BytesIO(file.getvalue()))
    assert found.steps == 28 and found.controls[0].control == "depth"


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_text_is_read_or_refused_with_words(text: str) -> None:
    for whole in (text, "Steps: " + text, "x\nSteps: 1, " + text, "x\nSteps: 1, ControlNet 0: " + text):
        try:
            found = read_parameters(whole)
        except ValueError as error:
            assert "give" in str(error)
        else:
            assert found.steps is None or 1 <= found.steps <= 1000


@pytest.mark.parametrize(
    "text", ["Steps: 1, " + '"' * 50_000, "Steps: 1, " + "a:" * 50_000, "Steps" + ": " * 200_000]
)
def test_a_hostile_text_is_read_quickly(text: str) -> None:
    read_parameters(text)  # a pattern that backtracks would not come back


# Strangers' files


def with_chunk(text: str) -> io.BytesIO:
    info, file = PngInfo(), io.BytesIO()
    info.add_text(CHUNK, text)
    Image.fromarray(PICTURE).save(file, format="PNG", pnginfo=info)
    return io.BytesIO(file.getvalue())


def document() -> dict[str, Any]:
    request = Request("x", (ControlUnit("canny", hint(0)),))
    file = io.BytesIO()
    save_png(PICTURE, file, request, seed=0, model="demo")
    whole: dict[str, Any] = json.loads(Image.open(io.BytesIO(file.getvalue())).info[CHUNK])
    return whole


def test_a_picture_without_settings_is_refused() -> None:
    for image in (Image.fromarray(PICTURE), with_text := io.BytesIO()):
        if image is with_text:
            Image.fromarray(PICTURE).save(with_text, format="JPEG")
        with pytest.raises(ValueError, match="carries no settings: give a PNG"):
            read_request(image)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"version": 1}', '"' + "x" * 100, "[" * 100_000, "9" * 9_999],
    ids=lambda text: text[:12],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a PNG"):
        read_request(with_chunk(text))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("request",), []),
        (("request", "steps"), 0),
        (("request", "steps"), "20"),
        (("request", "prompt"), None),
        (("request", "prompt"), "x" * 10_001),
        (("request", "sampler"), "plms"),
        (("request", "sampler"), []),
        (("request", "seed"), 2**63),
        (("request", "cfg_scale"), float("nan")),
        (("request", "size"), [10**9, 10**9]),
        (("request", "size"), [64]),
        (("request", "controls"), {"a": 1}),
        (("request", "controls", 0, "strength"), 3),
        (("request", "controls", 0, "control"), 5),
        (("request", "controls", 0, "png"), "!!!"),
        (("request", "controls", 0, "png"), "AAAA"),
        (("request", "controls", 0, "sha256"), "00"),
        (("request", "controls", 0, "size"), [128, 64]),
        (("picture_seed",), -1),
        (("picture_seed",), None),
        (("settings",), [1]),
        (("settings",), {"a": {"b": 1}}),
        (("settings",), {"a": float("inf")}),
    ],
)
def test_a_changed_document_is_refused(path: tuple[Any, ...], value: Any) -> None:
    whole = document()
    read_request(with_chunk(json.dumps(whole)))
    inner: Any = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match="give a PNG"):
        read_request(with_chunk(json.dumps(whole)))


def test_a_compressed_bomb_is_refused() -> None:
    info, file = PngInfo(), io.BytesIO()
    info.add(b"zTXt", CHUNK.encode() + b"\0\0" + zlib.compress(b" " * (50 * 2**20)))
    Image.fromarray(PICTURE).save(file, format="PNG", pnginfo=info)
    with pytest.raises(ValueError, match="give a PNG"):
        read_request(io.BytesIO(file.getvalue()))


def test_a_too_long_document_and_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.stored_request.MAX_CHARS", 100)
    with pytest.raises(ValueError, match="characters: give a PNG"):
        read_request(with_chunk(json.dumps(document())))
    monkeypatch.setattr("core.metadata.MAX_TEXT_CHARS", 100)
    with pytest.raises(ValueError, match="characters: give a PNG"):
        read_parameters(WEBUI)


def test_clip_skip_is_written_and_read_back_as_a_remark(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    request = Request("(a cat:1.2) \\(x\\) BREAK [b]", size=(64, 64))
    save_png(PICTURE, file, request, seed=1, model="demo", extra={"clip_skip": "2", "device": "cpu"})
    with Image.open(file) as image:
        text = str(image.info["parameters"])
    assert "Clip skip: 2" in text and "device" not in text
    for stored in (read_request(file), read_parameters(text)):
        assert stored.prompt == request.prompt
        assert "--clip-skip" in stored.notes[0]
    assert read_parameters("x\nSteps: 20, Seed: 1, Clip skip: 1").notes == ()


def test_what_was_put_onto_the_model_is_written_and_read_back_as_remarks(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    extra = {"vae": "other.vae.pt", "loras": "style:0.8, hand:1", "transfer_from": "v1-5.ckpt"}
    save_png(PICTURE, file, Request("a cat", size=(64, 64)), seed=1, model="demo", extra=extra)
    with Image.open(file) as image:
        text = str(image.info["parameters"])
    assert "VAE: other.vae.pt" in text and 'LoRAs: "style:0.8, hand:1"' in text
    for stored in (read_request(file), read_parameters(text)):
        assert len(stored.notes) == 3
        for note, words in zip(stored.notes, ("--vae", "--lora", "--transfer-control"), strict=True):
            assert words in note
        assert "style:0.8, hand:1" in stored.notes[1]
