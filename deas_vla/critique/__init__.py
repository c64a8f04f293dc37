"""Whether a critic is any good, from recordings alone: for those who have no simulator."""
