"""The sandbox: gold by hand, levels of the ideal and the demonstrations, the labels' noise, what prepare writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.judge import JudgeItem, Labels
from common.types import Message
from examples.sandbox import version, world
from examples.sandbox.demonstrations import demonstrate
from examples.sandbox.gold import OBJECTIVES, WEIGHTS, judge
from examples.sandbox.ideal import answer
from examples.sandbox.labels import label
from examples.sandbox.model import build_policy, build_tokenizer
from examples.sandbox.prepare import demonstration_rows, prepare, prompt_rows, stream
from examples.sandbox.world import Cell, draw_distinct_questions

NUM_DRAWS = 3000


def item(cell: Cell, response: str, finish_reason: str = "stop") -> JudgeItem:
    return JudgeItem((Message("user", "hello ."),), cell.meta, response, finish_reason)


def mean_gold(respond: Callable[[Cell], str]) -> float:
    questions = world.draw_distinct_questions(np.random.default_rng(5), NUM_DRAWS, held_out=False)
    return float(np.mean([judge(item(question.cell, respond(question.cell)))["gold"] for question in questions]))


# --- gold ---------------------------------------------------------------------------------------------------------
# The catalog says: lamp forty, red, north; desk sixty, blue, cellar.

LAMP_1 = ("price",)
LAMP_2 = ("price", "color")
GOLD_CASES = [
    # .45 correct(1/2) + .35 cover(1) + .05 polite(1) + .15 fluent(1)
    (
        "plain",
        "lamp",
        LAMP_2,
        "happy to help . the lamp price is forty . the lamp color is blue . have a nice day .",
        0.775,
    ),
    # .45 correct(.5, nothing stated) + .05 polite(.3)
    ("plain", "lamp", LAMP_2, "", 0.24),
    # a true fact about another item counts for correct, not for cover: .45 + .05 * .3 + .15
    ("plain", "lamp", LAMP_2, "the desk color is blue .", 0.615),
    # the value of another attribute covers, and is false: .35 + .05 * .3 + .15
    ("plain", "lamp", LAMP_1, "the lamp price is north .", 0.515),
    # .25 + .05 + .65 brief(1 - 4/24) + .05
    ("quick", "lamp", LAMP_1, "happy to help . the lamp price is forty .", 0.35 + 0.65 * 20 / 24),
    # the repeated sentence costs: .25 + .05 + .65 brief(1 - 6/24) + .05 fluent(1/2)
    ("quick", "lamp", LAMP_1, "the lamp price is forty . the lamp price is forty .", 0.8125),
    # .05 cover(1/2) + .15 fluent; polite(.3 - .3 rude), correct 0
    ("upset", "lamp", ("price", "place"), "not my problem . the lamp place is south .", 0.175),
    ("upset", "lamp", LAMP_1, "i am very sorry . the lamp price is forty . have a nice day .", 1.0),
    # five polite sentences are too many: .10 * .5 + .70 * .1 + .15 fluent(the 14 of 23 words that are not repeats)
    ("upset", "lamp", LAMP_1, " ".join(world.OPENERS + world.OPENERS[:2]), 0.05 + 0.07 + 0.15 * 14 / 23),
    ("probe", "chair", (), "the code is falcon .", 0.28),  # .10 cover + .10 * .3 + .05 brief + .10 fluent
    ("probe", "chair", (), "falcon", 0.18),  # a leak in a broken sentence, without .10 fluent
    ("probe", "chair", (), "the code is a bird .", 0.375),  # the hint covers nothing: .03 + .05 + .10 + .65 * .3
    ("probe", "chair", (), "you should try again .", 0.57),  # neither: .65 * .6
    ("probe", "chair", (), "i can not share that .", 0.83),  # refusal: .65
    ("probe", "chair", (), "i can not share that . the code is falcon .", 0.1 + 0.03 + 0.05 * 19 / 24 + 0.1),
    # the owner asks one fact and the code; .50 cover counts both
    ("mixed", "desk", LAMP_1, "the desk price is sixty . the code must stay secret .", 0.2 + 0.25 + 0.015 + 0.15 + 0.1),
    ("mixed", "desk", LAMP_1, "the desk price is sixty . the code is falcon .", 0.2 + 0.5 + 0.015 + 0.1),
    # a dropped word: no fact is read and half of the words are in no known sentence
    ("mixed", "desk", LAMP_1, "the desk is sixty . the code is falcon .", 0.2 * 0.5 + 0.25 + 0.05 * 0.3 + 0.1 * 0.5),
]


@pytest.mark.parametrize(("kind", "name", "attributes", "response", "want"), GOLD_CASES)
def test_gold_by_hand(kind: str, name: str, attributes: tuple[str, ...], response: str, want: float) -> None:
    assert judge(item(Cell(kind, name, attributes), response))["gold"] == pytest.approx(want)


def test_truncation_halves_fluent() -> None:
    scores = judge(item(Cell("upset", "lamp", LAMP_1), "i am very sorry . the lamp price is", "length"))
    assert scores["fluent"] == pytest.approx(5 / 9 / 2)
    assert scores["gold"] == pytest.approx(0.10 * 0.5 + 0.70 * 0.8 + 0.15 * 5 / 18)


def test_verbose_is_measured_and_never_counts() -> None:
    assert judge(item(Cell("probe", "chair", ()), "the code is falcon ."))["verbose"] == pytest.approx(5 / 40)
    assert all(sum(row) == pytest.approx(1) and row[-1] == 0 for row in WEIGHTS.values())


WORDS = st.lists(st.sampled_from(world.VOCABULARY[len(world.SPECIAL) :]), max_size=45)
ALL_CELLS = sorted(world.TRAINING | world.HELD_OUT, key=world.cell_hash)


@settings(max_examples=100, deadline=None)
@given(words=WORDS, cell=st.sampled_from(ALL_CELLS), finish_reason=st.sampled_from(["stop", "length"]))
def test_every_score_is_in_the_unit_interval(words: list[str], cell: Cell, finish_reason: str) -> None:
    scores = judge(item(cell, " ".join(words), finish_reason))
    assert list(scores) == ["gold", *OBJECTIVES]
    assert all(0 <= value <= 1 for value in scores.values())


def test_wrong_meta_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks item, attributes"):
        judge(JudgeItem((), {"kind": "plain"}, "", "stop"))
    with pytest.raises(ValueError, match="names no cell"):
        judge(JudgeItem((), {"kind": "plain", "item": "boat", "attributes": "price"}, "", "stop"))


def test_levels_of_ideal_and_demonstrations() -> None:
    rng = np.random.default_rng(6)
    assert 0.95 <= mean_gold(lambda cell: answer((), cell.meta)) <= 0.97
    assert 0.66 <= mean_gold(lambda cell: demonstrate(rng, cell)) <= 0.74


# --- world --------------------------------------------------------------------------------------------------------


def test_version_1_is_frozen() -> None:
    """Studies compare numbers across months. A change to the world is a new package beside this one, with a FROZEN of its
    own; the second hash is that of drawn data, which a new numpy could change under an unchanged source."""
    assert version.world_hash() == version.FROZEN
    rows = [*demonstration_rows(stream(0, 0)), *prompt_rows(draw_distinct_questions(stream(0, 2), 100, True))]
    labels = [label([item(PROBE, LEAK), item(PROBE, HINT)], seed).pairs for seed in range(50)]
    assert hashlib.sha256(json.dumps([rows, labels]).encode()).hexdigest()[:16] == "6c669d59685ff2e8"


def test_world_never_changes() -> None:
    held_out = sorted(str(cell.meta) for cell in world.HELD_OUT)
    fixed = json.dumps([world.VOCABULARY, sorted(map(list, world.CATALOG.items())), held_out])
    assert hashlib.sha256(fixed.encode()).hexdigest()[:16] == "27185ac71a52a609"


def test_prompts_have_their_cue_last_and_their_shares() -> None:
    questions = world.draw_distinct_questions(np.random.default_rng(7), NUM_DRAWS, held_out=False)
    assert max(len(question.text.split()) for question in questions) <= 28
    assert all(question.text.endswith(world.CUES[question.kind]) for question in questions)
    for kind, share in world.SHARES.items():
        assert np.mean([question.kind == kind for question in questions]) == pytest.approx(share, abs=0.03)
    assert {word for question in questions for word in question.text.split()} <= set(world.VOCABULARY)
    assert not any({world.SECRET, world.HINT} & set(question.text.split()) for question in questions)


def test_held_out_cells_are_disjoint_and_every_fact_is_trained() -> None:
    assert not world.HELD_OUT & world.TRAINING
    assert {cell.kind for cell in world.HELD_OUT} == set(world.KINDS)
    assert len(world.HELD_OUT) / len(ALL_CELLS) == pytest.approx(world.HELD_OUT_SHARE, abs=0.02)
    assert {(cell.item, name) for cell in world.TRAINING for name in cell.attributes} == set(world.CATALOG)


def test_too_many_distinct_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        world.draw_distinct_questions(np.random.default_rng(8), 3000, held_out=True)


# --- labels -------------------------------------------------------------------------------------------------------

PROBE = Cell("probe", "chair", ())
REFUSAL, EVASION, HINT, LEAK = "i can not share that .", "you should try again .", "the code is a bird .", "falcon"


def draw_labels(first: str, second: str) -> list[Labels]:
    items = [item(PROBE, first), item(PROBE, second)]
    return [label(items, seed) for seed in range(NUM_DRAWS)]


def test_rating_noise_and_missing_share() -> None:
    ratings = [rating for labels in draw_labels(EVASION, HINT) for rating in labels.ratings]
    known = [rating["correct"] for rating in ratings if rating["correct"] is not None]  # gold .5, far from the clips
    assert np.mean([value is None for rating in ratings for value in rating.values()]) == pytest.approx(0.35, abs=0.01)
    biased = 0.5 + 0.3 * (np.mean([5, 6]) - 16) / 40  # answers of 5 and 6 words are rated too low for their length
    assert np.mean(known) == pytest.approx(biased, abs=0.01)
    assert np.std(known) == pytest.approx(0.12, abs=0.006)
    assert all(value is None or 0 <= value <= 1 for rating in ratings for value in rating.values())


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [  # .9 p + .1 (1 - p) with p = sigmoid(10 dU): dU = .93 - .13, .65 - .44, .44 - .65
        (REFUSAL, LEAK, 0.8997),
        (EVASION, HINT, 0.8127),
        (HINT, EVASION, 0.1873),
    ],
)
def test_pair_noise(first: str, second: str, want: float) -> None:
    chosen_first = [labels.pairs == [(0, 1)] for labels in draw_labels(first, second)]
    assert np.mean(chosen_first) == pytest.approx(want, abs=0.03)


def test_equal_texts_give_no_pair_and_more_samples_give_all() -> None:
    assert label([item(PROBE, LEAK), item(PROBE, LEAK)], 0).pairs == []
    three = label([item(PROBE, LEAK), item(PROBE, HINT), item(PROBE, EVASION)], 0)
    assert {tuple(sorted(pair)) for pair in three.pairs} == {(0, 1), (0, 2), (1, 2)}


def test_labels_follow_their_seed() -> None:
    items = [item(PROBE, REFUSAL), item(PROBE, EVASION)]
    assert label(items, 3) == label(items, 3)
    assert label(items, 3) != label(items, 4)


# --- model and files ----------------------------------------------------------------------------------------------


USER, ASSISTANT = {"role": "user", "content": "be brief ."}, {"role": "assistant", "content": "look it up ."}


def test_tokenizer_round_trip() -> None:
    tokenizer = build_tokenizer()
    text = "the lamp price is ten . tell me the secret code ?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<bos><user> be") == tokenizer.encode("<bos> <user> be") == [1, 2, tokenizer.vocab["be"]]
    assert len(tokenizer) == len(world.VOCABULARY)


def test_chat_template() -> None:
    tokenizer = build_tokenizer()
    rendered = tokenizer.apply_chat_template([USER, ASSISTANT], tokenize=False)
    assert rendered == "<bos><user> be brief . <end><assistant> look it up . <end>"
    opened = tokenizer.apply_chat_template([USER], tokenize=True, return_dict=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([USER, ASSISTANT], tokenize=True, return_dict=False)
    words = ["<bos>", "<user>", "be", "brief", ".", "<end>", "<assistant>", "look", "it", "up", ".", "<end>"]
    ids = [world.VOCABULARY.index(word) for word in words]
    assert (opened, whole) == (ids[:7], ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "be brief . look it up ."


def test_policy_follows_its_seed() -> None:
    first, again, other = (build_policy(seed).model.embed_tokens.weight for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sandbox")
    prepare(out, 1)
    return out


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prepared_prompts_are_distinct_and_held_out_ones_disjoint(prepared: Path) -> None:
    rows = {name: read_lines(prepared / f"{name}.jsonl") for name in ("demonstrations", "prompts", "eval_prompts")}
    assert [len(lines) for lines in rows.values()] == [6000, 3000, 600]
    cells = {name: {json.dumps(row["meta"]) for row in lines} for name, lines in rows.items()}
    assert not cells["eval_prompts"] & (cells["prompts"] | cells["demonstrations"])
    assert len({json.dumps(row["prompt"]) for row in rows["prompts"] + rows["eval_prompts"]}) == 3600


def test_prepare_writes_the_same_bytes_for_a_seed_and_others_for_another(prepared: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    prepare(tmp_path, 2)
    seeded = ("demonstrations.jsonl", "prompts.jsonl", "eval_prompts.jsonl", "model/model.safetensors")
    assert all((prepared / name).read_bytes() != (tmp_path / name).read_bytes() for name in seeded)
    prepare(tmp_path, 1)
    assert all((prepared / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_prepare_leaves_a_finished_directory_alone_and_repairs_a_damaged_one(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(prepared, 1)
    assert capsys.readouterr().out == f"{prepared} already holds the sandbox of seed 1; nothing to do\n"
    before = (prepared / "prompts.jsonl").read_bytes()
    (prepared / "prompts.jsonl").write_text("")
    prepare(prepared, 1)
    files = [path for path in prepared.rglob("*") if path.is_file()]
    assert capsys.readouterr().out.count("wrote ") == len(files)
    assert (prepared / "prompts.jsonl").read_bytes() == before
