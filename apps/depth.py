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
        Example("depth_camel.png", "a camel on orange sand in a desert", "none"),
        Example("depth_pickup_truck.png", "an orange pickup truck on green grass", "none"),
        Example("toy_ambulance.png", "an ambulance on a gray road under a blue sky"),
        Example("toy_cupcake_and_crown.png", "a cupcake in front of a crown on a wooden table"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
        Example("photo_cat.jpg", "a cat on green grass"),
    ),
)
