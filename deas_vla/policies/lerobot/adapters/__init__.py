"""One file for each kind of LeRobot policy, named as LeRobot names the kind; a new one needs nothing else.

Each holds an `Adapter` (see `base.py`). Kinds without a file run through `batched.py`.
"""
