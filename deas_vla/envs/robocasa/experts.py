"""Scripted experts of RoboCasa's tasks: there are none yet."""

from deas_vla.errors import UserError


def make_expert(task: str):
    """The expert of a task.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"RoboCasa has no scripted expert for {task}; give recorded ones, --demos.dataset=LEROBOT_FOLDER; its own: "
        "python -m robocasa.scripts.download_datasets"
    )
