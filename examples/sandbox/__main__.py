"""The command `python -m examples.sandbox --out DIR --seed N`; see prepare."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.sandbox.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.sandbox", description="Write the sandbox's model and data."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to fill; files of another seed are replaced")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the model's weights, the demonstrations and the prompts"
    )
    arguments = parser.parse_args()
    prepare(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
