"""The sandbox: a small shop-assistant world in which the true quality of every response is known.

`python -m examples.sandbox --out DIR --seed N` writes its model and data; docs/sandbox.md describes the world.
"""
