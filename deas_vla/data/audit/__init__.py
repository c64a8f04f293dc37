"""Is a data set fit for training, and does it fit to others, to a policy, to a critic? See audit.py."""
