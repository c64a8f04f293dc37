"""Agents for state-only offline reinforcement learning: DEAS and its baselines, one file each."""
