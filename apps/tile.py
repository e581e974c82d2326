"""Tile of ControlNet 1.1: the picture is drawn again, with details of its own, as much as is asked for."""

from apps.spec import App, Example

APP = App(
    name="tile",
    title="Tiles",
    tab="Tile",
    order=150,
    group="1.1",
    annotator="picture",
    control="tile",
    denoise=0.6,
    alone=True,
    aliases=("tiles", "gradio_tile"),
    examples=(
        Example("toy_fox.png", "a cute orange fox"),
        Example("toy_tent.png", "a tent on green grass under a blue sky"),
        Example("toy_cupcake_and_crown.png", "a cupcake in front of a crown on a wooden table"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
    ),
)
