"""The gold table: an objective is averaged over the responses that the judge gave it to."""

import json
from dataclasses import replace
from pathlib import Path

from common.config.file import load_config
from driver.loop.evaluation import gold_table

QUICKSTART = Path(__file__).parents[4] / "configs" / "quickstart.yaml"


def test_a_prompt_that_does_not_ask_for_an_objective_has_no_part_in_its_mean(tmp_path: Path) -> None:
    config = load_config(QUICKSTART)
    config = replace(config, iteration=replace(config.iteration, num=1, steps=4))
    scores = [{"gold": 1.0, "commas": 1.0}, {"gold": 0.0, "words": 0.0}, {"gold": 0.5, "commas": 0.0, "words": 1.0}]
    for step in (0, 4):
        rows = [json.dumps({"prompt": "?", "response": "!", "meta": {}, "scores": score}) for score in scores]
        (tmp_path / f"step_{step}.jsonl").write_text("\n".join(rows) + "\n")
    first, last = gold_table(config, tmp_path, None)
    assert first["objectives"] == last["objectives"] == {"commas": 0.5, "words": 0.5}
    assert (first["gold"], first["prompts"], last["step"]) == (0.5, 3, 4)
