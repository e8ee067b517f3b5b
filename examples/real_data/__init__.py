"""Preference pairs that people made, yours too, made into a run's data: `python -m examples.real_data`."""
