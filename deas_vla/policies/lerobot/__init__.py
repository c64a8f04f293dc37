"""Any LeRobot policy as a chunk policy.

What the critic reads, by kind of policy; padding is masked, and pooled by `deas_vla.features.pooling.pool_tokens`:

==================  =========================================================================================
diffusion           the last feature map of the ResNet, a grid of tokens a camera
multi_task_dit      the patch tokens of CLIP's vision tower, a grid a camera; the projected sentence
smolvla             the language model's last hidden states of image and word tokens (not of the state token)
pi0, pi05           the language model's last hidden states of image and word tokens
groot               the backbone's hidden states, before the layers that are trained with the head
xvla                the Florence encoder's hidden states of the first camera and the words; other cameras' features
==================  =========================================================================================

act is refused: its latent is zero at inference, so that all candidates are the same chunk. For any other kind the user
names the module that encodes the images, and the critic reads what it returns: see `batched.py`.
"""
