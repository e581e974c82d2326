"""Canny edges: the picture keeps the photo's outlines."""

from apps.spec import App, Example

APP = App(
    name="canny",
    title="Canny Edge Maps",
    tab="Canny",
    order=10,
    annotator="canny",
    control="canny",
    aliases=("canny2image", "gradio_canny2image", "edges"),
    examples=(
        Example("toy_fox.png", "a cute orange fox"),
        Example("toy_bicycles.png", "two red bicycles on a road under a blue sky"),
        Example("toy_deer.png", "a brown deer on green grass"),
        Example("toy_umbrella_and_bucket.png", "a red umbrella behind a yellow bucket on an orange carpet"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
    ),
)
