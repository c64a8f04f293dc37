"""Any LeRobot policy as a chunk policy: one adapter a kind, in `adapters/`.

act is refused: its latent is zero at inference, so that all candidates are the same chunk. For a kind without an
adapter the user names the module that encodes the images, and the critic reads what it returns: see `batched.py`.
"""
