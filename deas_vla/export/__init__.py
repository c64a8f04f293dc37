"""The exported checkpoint: policy, critic and everything that is needed to check them, in one folder."""
