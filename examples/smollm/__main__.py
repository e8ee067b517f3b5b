"""The command `python -m examples.smollm --out DIR --seed N`; see prepare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.errors import RunError
from examples.smollm.prepare import Sizes, prepare

VARIABLE = "ITER_RLHF_DATA"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm", description="Fetch SmolLM2-135M-Instruct and write a run's prompts and pairs."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to fill; files of other data are replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the training prompts; held-out prompts have none")
    parser.add_argument("--data", type=Path, help=f"folder with people's pairs (default: ${VARIABLE}, else the Hub)")
    parser.add_argument("--model", help="a model's directory to use in place of the package's")
    parser.add_argument("--pairs", type=int, default=Sizes.train, help="pairs that train the reward model, at most")
    parser.add_argument("--second-pairs", type=int, default=Sizes.second, help="pairs of the second one, at most")
    arguments = parser.parse_args()
    folder = arguments.data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    sizes = Sizes(train=arguments.pairs, second=arguments.second_pairs)
    try:
        prepare(arguments.out, arguments.seed, folder, arguments.model, sizes)
    except RunError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
