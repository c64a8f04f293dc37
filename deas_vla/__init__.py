"""deas_vla: make vision-language-action policies better from their own rollouts.

Importing this package imports nothing heavy: LeRobot, transformers, robosuite and DeepSpeed are imported
where they are used, with a message that says what to install.
"""

__version__ = "0.1.0"
