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
        Example("toy_tiger.png", "a cute tiger on green grass under a blue sky"),
        Example("toy_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("toy_telephone.png", "a red telephone on a wooden table in front of a yellow wall"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
    ),
)
