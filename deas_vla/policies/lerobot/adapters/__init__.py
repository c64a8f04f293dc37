"""One file for each kind of LeRobot policy, named as LeRobot names the kind; a new one needs nothing else.

Each file holds the class of an `Adapter` (see `base.py`): how the kind encodes, samples and is trained, what the critic
reads of it, and which of its parts are written beside its weights. Kinds without a file run through `batched.py`.
"""
