"""Real preference pairs made into a run: tokenizer, small policy, demonstrations, prompts. `python -m examples.real_data`."""
