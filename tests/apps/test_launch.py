from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import launch
from apps import all_pages
from apps.page import model as models
from core.additions import Lora
from core.runtime.batcher import Batcher


def test_every_flag_has_a_sentence_of_help() -> None:
    actions = [a for a in launch.parser()._actions if a.dest != "help"]
    flags = {option for action in actions for option in action.option_strings}
    assert flags == {
        *("--app", "--model", "--device", "--dtype", "--host", "--port", "--share", "--auth"),
        *("--lora", "--vae", "--transfer-control", "--parameterization"),
        *("--low-vram", "--clip-skip", "--embeddings", "--list"),
        *("--vae-dtype", "--compile", "--no-graphs", "--max-batch"),
    }
    for action in actions:
        assert action.help is not None and action.help.endswith("."), action.dest


def test_host_and_port_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (launch.parser().parse_args([]).host, launch.parser().parse_args([]).port) == ("127.0.0.1", 7860)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8123")
    args = launch.parser().parse_args([])
    assert (args.host, args.port) == ("0.0.0.0", 8123)
    assert launch.parser().parse_args(["--port", "9000"]).port == 9000


def test_list_prints_the_apps(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [page.name for page in all_pages()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--app", "cany"], "give one of canny, mlsd, hed"),
        (["--auth", "nocolon"], "USER:PASSWORD"),
        (["--auth", "user:"], "USER:PASSWORD"),
        (["--model", "sd16"], "no such model"),
        (["--model", "/nowhere/model.safetensors"], "no such file"),
        (["--dtype", "int4"], "invalid choice"),
        (
            ["--model", "demo", "--lora", "/nowhere/style.safetensors:0.8"],
            "--lora /nowhere/style.safetensors: ",
        ),
        (["--model", "demo", "--lora", "x.safetensors:80"], "the weight of x.safetensors is 80"),
        (["--model", "demo", "--vae", "/nowhere/vae.ckpt"], "--vae /nowhere/vae.ckpt: there is no such file"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        launch.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import apps.ui

    def serve(page: Any, **options: Any) -> str:
        raise OSError("in use")

    monkeypatch.setattr(apps.ui, "build", lambda apps, model: None)
    monkeypatch.setattr(apps.ui, "serve", serve)
    with pytest.raises(SystemExit) as stopped:
        launch.main(["--model", "demo", "--port", "8001"])
    assert stopped.value.code == 1
    assert "127.0.0.1:8001 (in use): give another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--clip-skip 0", "--clip-skip is 0: give a whole number from 1."),
        ("--embeddings /no/such", "--embeddings is /no/such: there is no such folder."),
    ],
)
def test_wrong_options_for_prompts_are_told(
    given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        launch.main(given.split())
    assert told in capsys.readouterr().err


def test_arguments_reach_the_page_and_the_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import apps.ui
    import core

    seen: dict[str, Any] = {}

    class Page:
        def block_thread(self) -> None:
            seen["blocked"] = True

    def build(apps: Any, model: models.Model) -> Page:
        seen["apps"], seen["model"] = [app.name for app in apps], model
        return Page()

    def load_pipeline(name: str, **options: Any) -> Any:
        seen["load"] = (name, options)
        raise ValueError("not in this test")

    def serve(page: Page, **options: Any) -> str:
        seen["serve"] = options
        return ""

    monkeypatch.setattr(apps.ui, "build", build)
    monkeypatch.setattr(apps.ui, "serve", serve)
    monkeypatch.setattr(core, "load_pipeline", load_pipeline, raising=False)
    arguments = "--app canny --model demo --device cpu --dtype float32 --host 0.0.0.0 --port 8001 --low-vram"
    words = ["--clip-skip", "2", "--embeddings", str(tmp_path), "--transfer-control", "sd15"]
    for name in ("style", "hand"):
        (tmp_path / f"{name}.safetensors").touch()
        words += ["--lora", f"{tmp_path}/{name}.safetensors:0.5"]
    words += ["--vae", f"{tmp_path}/hand.safetensors", "--parameterization", "v"]
    words += ["--vae-dtype", "float16", "--compile", "--no-graphs"]
    assert launch.main([*arguments.split(), *words, "--auth", "ann:se:cret"]) == 0
    assert seen["model"].wait(10)
    assert seen["apps"] == ["canny"] and seen["blocked"]
    told: dict[str, Any] = {"device": "cpu", "dtype": "float32", "low_vram": True}
    told |= {"clip_skip": 2, "embeddings": tmp_path}
    told["loras"] = tuple(Lora(tmp_path / f"{name}.safetensors", 0.5) for name in ("style", "hand"))
    told |= {"vae": tmp_path / "hand.safetensors", "transfer_from": "sd15", "parameterization": "v"}
    told |= {"vae_dtype": "float16", "compile": True, "graphs": False}
    assert seen["load"] == ("demo", told)
    assert seen["serve"] == {"host": "0.0.0.0", "port": 8001, "share": False, "auth": ("ann", "se:cret")}


@pytest.mark.parametrize(("flags", "pictures"), [([], 4), (["--low-vram"], 1), (["--max-batch", "2"], 2)])
def test_pictures_are_drawn_in_a_thread_of_their_own_also_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], pictures: int
) -> None:
    import core

    pipeline = SimpleNamespace(device=torch.device("cpu"), name="demo", title="Demo")
    monkeypatch.setattr(core, "load_pipeline", lambda name, **options: pipeline, raising=False)
    args = launch.parser().parse_args(["--model", "demo", *flags])
    drawing = launch._model(args, ["canny"]).get()
    assert isinstance(drawing, Batcher) and drawing.max_batch == pictures


def test_detectors_compute_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from annotators import networks

    placed: list[dict[str, Any]] = []
    monkeypatch.setattr(networks, "configure", lambda **options: placed.append(options))
    launch._place_detectors(launch.parser().parse_args([]))
    assert placed == []  # asking would import torch before the page is up
    launch._place_detectors(launch.parser().parse_args(["--device", "cpu"]))
    assert placed == [{"device": "cpu", "dtype": "auto"}]
