"""Draw what every app makes of held-out scenes, with the page's own settings: nothing is picked."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from apps import find_apps
from apps.page.drawing import draw
from apps.page.files import PictureFolder
from apps.page.forms import AppForm, Field, Picture
from apps.page.model import Model
from apps.spec import App
from core.images import to_rgb
from core.loading import load_pipeline
from core.training.toyworld.scene import Scene, held_out_scenes
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]

APPS = ("canny", "depth", "hed", "mlsd", "normal", "pose", "scribble", "segmentation", "fake_scribble")
WITH_PEOPLE = "pose"
SIDE = 112  # px of a picture in the grid
GAP = 6  # px between apps


def run(args: argparse.Namespace) -> None:
    """Write the grid: for each app a row of maps above a row of pictures, below the scenes."""
    model = Model.ready(load_pipeline(args.model))
    library = SpriteLibrary.load()
    sets = {people: held_out_scenes(library, args.count, people=people) for people in (False, True)}
    blocks: list[Image] = []
    shown: list[Scene] = []
    for app in find_apps(args.apps):
        scenes = sets[app.name == WITH_PEOPLE]
        if scenes is not shown:
            blocks.append(_row([scene.image for scene in scenes]))
            shown = scenes
        blocks.append(app_rows(app, model, scenes, args.steps))
        print(app.title, flush=True)
    grid = np.vstack(
        [np.vstack([block, np.full((GAP, block.shape[1], 3), 255, np.uint8)]) for block in blocks]
    )
    Pillow.fromarray(grid[:-GAP]).save(args.output, quality=88)
    print(f"{args.output}: {grid.shape[1]} x {grid.shape[0] - GAP} px")


def app_rows(app: App, model: Model, scenes: Sequence[Scene], steps: int) -> Image:
    """Return a row of maps and a row of pictures, picture i of scene i with its caption and seed i."""
    form = AppForm(app, model.resolution, model.cfg_scale, str)
    maps, pictures = [], []
    with tempfile.TemporaryDirectory() as place:
        for i, scene in enumerate(scenes):
            path = Path(place) / f"scene_{i}.png"
            Pillow.fromarray(scene.image).save(path)
            own = {"image": str(path), "prompt": scene.caption, "seed": i, "steps": steps, "num_samples": 1}
            values = {field.name: own.get(field.name, _default(field)) for field in form.fields}
            *_, last = draw(form.plan(values), model, PictureFolder(Path(place)), every=1e9)
            map_file, picture_file = last.files
            maps.append(to_rgb(map_file))
            pictures.append(to_rgb(picture_file))
    return np.vstack([_row(maps), _row(pictures)])


def _default(field: Field) -> object:
    return None if isinstance(field, Picture) else getattr(field, "default", None)


def _row(pictures: Sequence[Image]) -> Image:
    small = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for picture in pictures]
    return np.asarray(np.hstack(small), np.uint8)
