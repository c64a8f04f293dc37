"""A GR00T-style policy: a vision-language backbone and a flow-matching transformer over action chunks."""
