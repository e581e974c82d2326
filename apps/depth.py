"""Depth: the picture keeps what is near and what is far."""

from apps.spec import App, Example

APP = App(
    name="depth",
    title="Depth Maps",
    tab="Depth",
    order=90,
    annotator="depth",
    control="depth",
    aliases=("depth2image", "gradio_depth2image"),
    examples=(
        Example("depth_tiger.png", "a cute tiger on green grass under a blue sky", "none"),
        Example("depth_pickup_truck.png", "an orange pickup truck on green grass", "none"),
        Example("depth_camel.png", "a camel on orange sand in a desert", "none"),
        Example("toy_car.png", "a blue car on green grass under a blue sky"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
        Example("photo_cat.jpg", "a cat on green grass"),
    ),
)
