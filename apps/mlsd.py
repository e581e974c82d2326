"""Straight lines: the picture keeps a room's or a building's frame."""

from apps.spec import App, Example

APP = App(
    name="mlsd",
    title="Hough Line Maps",
    tab="M-LSD",
    order=20,
    annotator="mlsd",
    control="mlsd",
    aliases=("hough", "hough2image", "gradio_hough2image"),
    examples=(
        Example("toy_boat.png", "a motor boat on the blue ocean"),
        Example("toy_dog_and_ball.png", "a dog behind a ball on a gray road in front of colorful houses"),
        Example("toy_car.png", "a blue car on green grass under a blue sky"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
        Example("photo_camera.jpg", "a man with a camera on green grass"),
    ),
)
