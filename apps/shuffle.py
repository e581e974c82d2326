"""Content shuffle of ControlNet 1.1: the picture takes over colours and style, not shapes."""

from apps.spec import App, Example

APP = App(
    name="shuffle",
    title="Content Shuffle",
    tab="Shuffle",
    order=130,
    group="1.1",
    annotator="shuffle",
    control="shuffle",
    aliases=("content_shuffle", "gradio_shuffle"),
    examples=(
        Example("photo_rocket.jpg", "a castle on a hill"),
        Example("photo_coffee.jpg", "a cozy room with a fireplace"),
        Example("toy_umbrella_and_bucket.png", "a red umbrella behind a yellow bucket on an orange carpet"),
        Example("toy_deer.png", "a brown deer on white snow"),
    ),
)
