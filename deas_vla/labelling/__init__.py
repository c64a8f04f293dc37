"""Outcomes for recordings that have none: a person looks at each episode's film, in a terminal or in a browser."""
