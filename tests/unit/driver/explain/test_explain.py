"""Stage explain: the parts sum to the score, two responses differ by their parts, and every bad input has its message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.file import BASE, load_config
from common.types import Message
from driver.commands import CommandError, run_explain
from driver.evaluate_rm.source import serving
from driver.explain.command import explain_responses, requests
from driver.explain.text import Explained, format_explained, to_dict
from rewarder.aggregate import combined_scores
from rewarder.aggregation import Aggregation
from rewarder.explain import explain
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses
from tests.integration.models import OBJECTIVES, tiny_policy
from tests.unit.pages import parse

EVIL = "<script>w1 & w2"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated model whose debias matrix is no identity and whose gate is not uniform."""
    directory = tmp_path_factory.mktemp("rm")
    tiny_policy(directory / "policy", 0)
    model = GatedRewardModel.from_policy(directory / "policy", OBJECTIVES, 8, 1, 1.0, 2.0, 0, verbosity="brief")
    generator = torch.Generator().manual_seed(0)
    for parameter in [*model.gating.layers.parameters(), model.regression_layer.weight]:
        parameter.data.normal_(0, 0.3, generator=generator)
    model.reward_transform_matrix.data[2] -= torch.tensor([0.25, 0.5, 1.0])
    model.save(directory / "model", AutoTokenizer.from_pretrained(directory / "policy"))
    return directory / "model"


def config(tmp_path: Path, model_dir: Path, *overrides: str) -> Config:
    given = [f"run.dir={tmp_path}", "aggregation.kind=final_score", f"rewarder.model={model_dir}"]
    return load_config(BASE, [*given, "rewarder.dtype=float32", *overrides])


def test_contributions_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 2.0]])
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.25, -0.5, 0.0]])  # column 2 is removed
    found = explain(scores, torch.tensor([0.5, 0.25, 0.25]), matrix)
    assert found.debiased.tolist() == [[0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]]
    assert found.contributions.tolist() == [[0.0, 0.0, 0.0], [-0.25, 0.0, 0.0]] and found.total.tolist() == [0.0, -0.25]
    found = explain(scores, torch.tensor([0.5, 0.25, 0.25]), torch.eye(3))
    assert found.contributions.tolist() == [[0.5, 0.5, 1.0], [0.0, 0.25, 0.5]] and found.total.tolist() == [2.0, 0.75]


def test_contributions_sum_to_the_models_score(model_dir: Path) -> None:
    model, tokenizer = GatedRewardModel.load(model_dir, "float32"), AutoTokenizer.from_pretrained(model_dir)
    messages, responses = [Message("user", "w1 w2")], ["w3", "w4 w5 w6"]
    scores, gate = score_responses(model, tokenizer, messages, responses, 64)
    found = explain(scores, gate, model.reward_transform_matrix.detach())
    final = Aggregation("final_score", (), 0.0, 0.0)
    exact = combined_scores(scores.double(), gate.double(), model.reward_transform_matrix.detach(), final)[:, 0]
    assert found.contributions.sum(-1).tolist() == found.total.tolist() == exact.tolist()
    assert found.debiased[:, 2].abs().max() == 0  # the verbosity objective itself
    served = (scores @ model.reward_transform_matrix.detach() * gate).sum(-1)  # in float32, as it is served
    assert found.total.tolist() == pytest.approx(served.tolist(), abs=1e-5)


def test_shapes_and_values_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="want \\[G, K\\] and \\[K\\]"):
        explain(torch.ones(2, 3), torch.ones(2), torch.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        explain(torch.full((1, 2), torch.nan), torch.ones(2), torch.eye(2))
    with pytest.raises(ValueError, match="gate_weights has values that are not finite"):
        explain(torch.ones(1, 2), torch.tensor([1.0, torch.inf]), torch.eye(2))


def test_two_responses_are_explained_and_told_apart(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, model_dir, "explain.prompt=w1 w2", 'explain.responses=["w3","w4 w5"]')
    explain_responses(settings, tmp_path)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "explain.json").read_text())
    assert "rewarder.model, version 0" in said and "difference: response 1 - response 2" in said
    (row,) = found["rows"]
    assert row["objectives"] == OBJECTIVES
    for response in row["responses"]:
        assert sum(response["contributions"]) == pytest.approx(response["score"], abs=1e-12)
        products = [g * r for g, r in zip(row["gate_weights"], response["debiased"], strict=True)]
        assert products == pytest.approx(response["contributions"], abs=1e-12)
    first, second = (response["score"] for response in row["responses"])
    assert sum(row["difference"]["contributions"]) == pytest.approx(first - second, abs=1e-12)
    assert row["difference"]["score"] == pytest.approx(first - second, abs=1e-12)
    page = (tmp_path / "explain.html").read_text()
    parsed = parse(page)
    assert {"svg", "table"} <= parsed.tags and "script" not in parsed.tags
    assert all(name in page for name in OBJECTIVES)


def test_rows_of_a_file(tmp_path: Path, model_dir: Path) -> None:
    rows = [
        {"prompt": EVIL, "chosen": "w3", "rejected": "w4"},
        {"prompt": "w5", "response": EVIL},
        {"prompt": "w6", "response": "w7"},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(tmp_path, model_dir, f"explain.file={tmp_path / 'r.jsonl'}", "explain.rows=2")
    explain_responses(settings, tmp_path)
    found = json.loads((tmp_path / "explain.json").read_text())["rows"]
    assert [[r["name"] for r in row["responses"]] for row in found] == [["chosen", "rejected"], ["response"]]
    assert "difference" in found[0] and "difference" not in found[1]
    assert "script" not in parse((tmp_path / "explain.html").read_text()).tags
    first = (tmp_path / "explain.html").read_bytes()
    explain_responses(settings, tmp_path)
    assert (tmp_path / "explain.html").read_bytes() == first  # the same numbers, the same bytes


def test_names_may_hold_anything(tmp_path: Path, model_dir: Path) -> None:
    """Objective names come from a checkpoint: as text, however odd."""
    path = tmp_path / "odd"
    path.mkdir()
    for file in model_dir.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    names = ["$x_{", "<b>", "n" * 80]
    values = json.loads((path / "config.json").read_text()) | {"objectives": names, "verbosity": None}
    (path / "config.json").write_text(json.dumps(values))
    explain_responses(config(tmp_path, path, "explain.prompt=w1", 'explain.responses=["w3"]'), tmp_path)
    page = (tmp_path / "explain.html").read_text()
    assert "$x_{" in page and "&lt;b&gt;" in page and "<b>n" not in page
    parse(page)


class FakeRun:
    """What a command sees of a run."""

    def __init__(self, config: Config, directory: Path):
        self.config, self.directory = config, directory


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rewarder.max_tokens=4",), "over rewarder.max_tokens 4"),
        (("rewarder.objectives=[a, b]",), "rewarder.objectives has 2 names but the checkpoint has 3"),
        (("rewarder.objectives=[a, b, c]",), "omit the key"),
    ],
)
def test_what_cannot_be_scored_ends_with_one_message(
    tmp_path: Path, model_dir: Path, overrides: tuple[str, ...], words: str
) -> None:
    settings = config(tmp_path, model_dir, "explain.prompt=w1 w2", 'explain.responses=["w3"]', *overrides)
    with pytest.raises(CommandError, match="explain: ") as caught:
        run_explain(FakeRun(settings, tmp_path))  # pyright: ignore[reportArgumentType]
    assert words in str(caught.value)


def test_which_model_is_looked_at(tmp_path: Path, model_dir: Path) -> None:
    settings = config(tmp_path, model_dir)
    found = serving(settings)
    assert found is not None and (found.name, found.origin) == (str(model_dir.resolve()), "rewarder.model")
    first = settings.run_dir / "rm" / "version_0"
    first.mkdir(parents=True)
    (first / "config.json").write_text("{}")
    found = serving(settings)
    assert found is not None and (found.name, found.origin) == (str(first.resolve()), "the run's rm/version_0")
    for step, adapted in ((20, ""), (40, "rm/version_1")):
        path = settings.run_dir / "checkpoints" / f"step_{step}"
        path.mkdir(parents=True)
        (path / "driver.json").write_text(json.dumps({"step": step, "reward_model": adapted}))
    found = serving(settings)
    assert found is not None and found.name.endswith("rm/version_1")
    assert serving(load_config(BASE, ["aggregation.kind=final_score", f"run.dir={tmp_path / 'none'}"])) is None


def test_a_request_from_the_configuration(tmp_path: Path, model_dir: Path) -> None:
    settings = config(tmp_path, model_dir, "explain.prompt=hi", 'explain.responses=["a", ""]')
    assert requests(settings.explain) == [((Message("user", "hi"),), {"response 1": "a", "response 2": ""})]


def test_the_tables_show_every_part() -> None:
    parts = explain(torch.tensor([[1.0, 2.0], [0.5, 2.0]]), torch.tensor([0.5, 0.25]), torch.eye(2))
    explained = Explained("p", {"response 1": "a", "response 2": "b"}, ("good", "safe"), parts)
    lines = format_explained(explained).splitlines()
    assert lines[:6] == [
        "prompt: p",
        "response 1: a",
        "  objective  raw score  debiased  gate weight  contribution",
        "  good          1.0000    1.0000       0.5000        0.5000",
        "  safe          2.0000    2.0000       0.2500        0.5000",
        "  score                                              1.0000",
    ]
    assert lines[-4:] == [
        "  objective  debiased  gate weight  contribution",
        "  good        +0.5000       0.5000       +0.2500",
        "  safe        +0.0000       0.2500       +0.0000",
        "  score                                  +0.2500",
    ]
    assert to_dict(explained)["difference"] == {"contributions": [0.25, 0.0], "score": 0.25}
