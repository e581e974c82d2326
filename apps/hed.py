"""Soft edges: the picture keeps outlines and much of the detail inside them."""

from apps.spec import App, Example

APP = App(
    name="hed",
    title="HED Maps",
    tab="HED",
    order=30,
    annotator="hed",
    control="hed",
    aliases=("hed2image", "gradio_hed2image"),
    examples=(
        Example("toy_fox.png", "a cute orange fox"),
        Example("toy_deer.png", "a brown deer on white snow"),
        Example("toy_cupcake_and_crown.png", "a cupcake in front of a crown on a wooden table"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
    ),
)
