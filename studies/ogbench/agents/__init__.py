"""Agents for state-only offline reinforcement learning: DEAS and its rivals, one file each."""
