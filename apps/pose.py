"""Human pose: the picture keeps how people stand and move."""

from apps.spec import App, Example

APP = App(
    name="pose",
    title="Human Pose",
    tab="Pose",
    order=70,
    annotator="pose",
    control="openpose",
    aliases=("openpose", "pose2image", "gradio_pose2image"),
    examples=(
        Example(
            "pose_raised_hand.png",
            "a man in a red shirt raising one hand on green grass under a blue sky",
            "none",
        ),
        Example("pose_jumping.png", "a man in a red shirt jumping on green grass under a blue sky", "none"),
        Example("pose_three_people.png", "three people on a sandy beach", "none"),
        Example("toy_jumping.png", "a man in a green shirt jumping on white snow"),
        Example("photo_astronaut.jpg", "an astronaut in front of a red wall"),
        Example("photo_camera.jpg", "a man with a camera on green grass"),
    ),
)
