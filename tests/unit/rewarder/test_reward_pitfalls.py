"""The pitfalls of gated reward models (from the released ArmoRM: its issues, its script, its users), each with its tests.

 1 softmax over objectives        test_reward_model: test_softmax_is_over_objectives
 2 gate reads the end of turn     test_reward_model: test_positions_of_a_conversation; here: test_each_family_has_its_positions;
                                  as the released code finds it: test_released_layout: test_every_part_is_the_equations
 3 forged turns in a response     test_reward_model: test_response_cannot_forge_a_turn
 4 newlines that merge            here: test_newlines_before_a_response_move_nothing
 5 truncation                     test_reward_model: test_too_long_is_an_error (nothing is cut; the conversation is refused)
 6 rollouts cut at max length     here: test_a_cut_response_is_read_at_an_end_of_turn; penalty: test_reward_model:
                                  test_rewarder_scores_a_group
 7 pad id in the text             test_reward_model: test_padding_changes_nothing; here: test_the_pad_token_does_not_matter
 8 padding side, batches          test_reward_model: test_padding_changes_nothing, test_positions_are_checked,
                                  test_group_equals_batches_equals_single; here: test_the_pad_token_does_not_matter. Packed
                                  attention is not used for scoring.
 9 same kernel and dtype          test_ridge_stage: test_hidden_states_are_those_that_serve,
                                  test_whatever_changes_the_states_misses_the_cache, test_the_fit_is_what_is_served
10 heads in float32               test_reward_model: test_heads_stay_float32; here: test_close_scores_are_no_ties; stored:
                                  test_released_layout: test_the_inventory_of_the_released_checkpoint
11 one BOS                        test_reward_model: test_positions_of_a_conversation; here: test_there_is_one_bos
12 no generation prompt           test_reward_model: test_positions_of_a_conversation
13 r T, not T r                   test_aggregate: test_debias_is_row_times_matrix; test_debias: test_planted_penalties;
                                  test_released_layout: test_every_part_is_the_equations
14 scores are raw                 here: test_scores_are_raw_and_the_gate_trains_on_debiased_ones
15 stock classifiers              test_reward_model: test_other_checkpoints_are_refused, test_broken_checkpoints_are_refused;
                                  test_label_checks: test_what_is_no_reward_model_is_refused_before_it_is_loaded
16 Bradley-Terry scale            here: test_the_gates_scale_is_learned_stored_and_calibrated_away
17 penalties only                 test_debias: test_only_penalties
18 which correlation              test_debias: test_penalty_is_the_first_that_reaches_the_threshold (signed, global);
                                  test_length_bias (within prompts, and with true length)
19 splits by prompt               test_reward_data: test_splits_are_by_prompt_and_stay,
                                  test_a_conversation_and_its_continuation_fall_on_the_same_side; test_split.
                                  Decontamination: test_rm_overlap (counted by stage evaluate_rm; nothing is left out)
20 other templates                here: test_each_family_has_its_positions (there is no pattern to store: positions are
                                  counted); test_reward_model: test_bad_conversations_are_refused
21 objective names                test_reward_model: test_released_config_loads, test_tensor_inventory,
                                  test_round_trip_is_bit_equal; test_released_layout: test_the_nineteen_objectives_in_order
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors

from learner.reward_model import calibration
from learner.reward_model.training import Features, descend_gate, gate_loss, gated_score
from rewarder.aggregation import Aggregation
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render, score_responses
from tests.integration.models import tiny_policy
from tests.unit.templates import CHATML, GEMMA, LLAMA3, PROMPT, THINKING, UNTRIMMED, tokenizer_of, tokens

NAMES = ["help", "verbosity", "safe"]
FINAL = Aggregation("final_score", (), 0.0, 0.0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    tiny_policy(directory, 0)
    return directory


@pytest.fixture
def model(policy: Path) -> GatedRewardModel:
    made = GatedRewardModel.from_policy(policy, NAMES, 16, 2, 2.0, 1.5, 0, verbosity="verbosity")
    generator = torch.Generator().manual_seed(1)
    for parameter in [*made.gating.layers.parameters(), made.regression_layer.weight]:
        parameter.data.normal_(0, 0.3, generator=generator)
    made.reward_transform_matrix.data[1] -= torch.tensor([0.25, 1.0, 0.1])
    return made.eval()


@pytest.mark.parametrize(
    ("template", "end_of_prompt", "header", "end"),
    [
        (LLAMA3, ["w5", "<eot>"], ["<start>", "assistant", "<stop>", "\n\n"], ["<eot>"]),
        (GEMMA, ["w5", "<eot>", "\n"], ["<start>", "model", "\n"], ["<eot>", "\n"]),
        (CHATML, ["w5", "<eot>", "\n"], ["<start>", "assistant", "\n"], ["<eot>", "\n"]),
        (
            THINKING,
            ["w5", "<eot>", "\n"],
            ["<start>", "assistant", "\n", "<think>", "\n\n", "</think>"],
            ["<eot>", "\n"],
        ),
    ],
    ids=["llama3", "gemma", "chatml", "thinking"],
)
def test_each_family_has_its_positions(
    template: str, end_of_prompt: list[str], header: list[str], end: list[str]
) -> None:
    """The gate reads the last token of the closed user turn, never the assistant's header; the heads the last of all. Where a
    template writes a newline after its end of turn, that is the token, for prompt and response alike."""
    tokenizer = tokenizer_of(template)
    ids, prompt_end, response_end = render(tokenizer, PROMPT, "w7 w8")
    text = tokens(tokenizer, ids)
    assert text[prompt_end + 1 - len(end_of_prompt) : prompt_end + 1] == end_of_prompt
    assert text[prompt_end + 1 :] == [*header, "w7", "w8", *end]
    assert response_end == len(ids) - 1


@pytest.mark.parametrize("newlines", ["\n", "\n\n\n"])
def test_newlines_before_a_response_move_nothing(model: GatedRewardModel, newlines: str) -> None:
    trimmed, untrimmed = tokenizer_of(LLAMA3), tokenizer_of(UNTRIMMED)
    plain = render(trimmed, PROMPT, "w7")
    assert render(trimmed, PROMPT, newlines + "w7") == plain
    merged = render(untrimmed, PROMPT, newlines + "w7")
    header = tokens(untrimmed, merged.ids[plain.prompt_end + 1 :])
    assert header == ["<start>", "assistant", "<stop>", "\n\n" + newlines, "w7", "<eot>"]
    assert merged.prompt_end == plain.prompt_end
    gates = [score_responses(model, t, PROMPT, [newlines + "w7"], 64)[1] for t in (trimmed, untrimmed)]
    torch.testing.assert_close(gates[0], gates[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("template", [LLAMA3, GEMMA, CHATML])
def test_a_cut_response_is_read_at_an_end_of_turn(template: str) -> None:
    tokenizer = tokenizer_of(template)
    whole, cut = (render(tokenizer, PROMPT, text) for text in ("w7 w8 w9", "w7 w8"))
    assert cut.ids[cut.response_end] == whole.ids[whole.response_end]
    assert "<eot>" in tokens(tokenizer, cut.ids[cut.response_end - 1 :])


def test_the_pad_token_does_not_matter(model: GatedRewardModel) -> None:
    """Also where it is the end of turn, for which a search for the first pad lands in the prompt and every response scores
    alike; and whichever side the tokenizer would pad on."""
    responses = ["w7", "w8 w9 w10 w11", ""]
    want = score_responses(model, tokenizer_of(LLAMA3), PROMPT, responses, 64)
    same = tokenizer_of(LLAMA3, pad="<eot>")
    same.padding_side = "left"
    model.backbone.config.pad_token_id = same.pad_token_id
    got = score_responses(model, same, PROMPT, responses, 64)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    gaps = (got[0][:, None] - got[0][None]).abs().amax(-1)[np.triu_indices(3, 1)]
    assert float(gaps.min()) > 1e-3, "each response has its own score"


def test_close_scores_are_no_ties(model: GatedRewardModel) -> None:
    """Scores that one bfloat16 step would merge (about 0.001 at 0.19) stay apart under bfloat16 autocast."""
    near = torch.zeros(2, 64)
    near[:, 0] = 1.0
    near[1, 1] = 1e-4
    model.regression_layer.weight.data.zero_()[0, :2] = torch.tensor([0.19, 1.0])
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.heads(near, near).scores[:, 0].detach()
    assert float(scores[1] - scores[0]) == pytest.approx(1e-4, rel=1e-2)
    assert scores.bfloat16()[0] == scores.bfloat16()[1]


def test_there_is_one_bos() -> None:
    """The tokenizer's post-processor adds a BOS to text, and the template has one too."""
    tokenizer = tokenizer_of(LLAMA3)
    bos = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer("w1").input_ids[0] == tokenizer.bos_token_id
    assert render(tokenizer, PROMPT, "w7").ids.count(tokenizer.bos_token_id) == 1  # type: ignore[arg-type]


def test_scores_are_raw_and_the_gate_trains_on_debiased_ones(model: GatedRewardModel) -> None:
    batch = pad_conversations([render(tokenizer_of(LLAMA3), PROMPT, text) for text in ("w7", "w8 w9")])
    with torch.no_grad():
        output = model(*batch)
        score = gated_score(output, model.reward_transform_matrix)
        raw = gated_score(output, torch.eye(3))
        model.reward_transform_matrix.data.copy_(torch.eye(3))
        assert torch.equal(model(*batch).scores, output.scores), "T is applied after the scores"
    assert score.shape == (2,) and float((score - raw).abs().min()) > 1e-4


def features(count: int, seed: int) -> Features:
    """Pairs of random hidden states whose better response has the larger first coordinate, mostly."""
    generator = torch.Generator().manual_seed(seed)
    prompt, response = torch.randn(2, 2 * count, 64, generator=generator)
    rows = torch.arange(2 * count).reshape(-1, 2)
    first = (response[rows[:, 0], 0] + 0.5 * torch.randn(count, generator=generator)) > response[rows[:, 1], 0]
    pairs = torch.where(first[:, None], rows, rows.flip(1))
    labels, unrated = torch.tensor([1.0, 0.0, 1.0, 1.0]).repeat(count, 1), torch.full((2 * count, 3), torch.nan)
    return Features(prompt, response, pairs, labels, unrated, torch.arange(count).repeat_interleave(2))


def test_the_gates_scale_is_learned_stored_and_calibrated_away(
    model: GatedRewardModel, policy: Path, tmp_path: Path
) -> None:
    """Heads whose scores differ by hundredths, as those of released models: a gate that starts at a small scale could not tell
    them apart; its scale grows, is written with the checkpoint, and what the policy is trained on does not depend on it."""
    model.regression_layer.weight.data.zero_()[:, 0] = torch.tensor([0.05, 0.01, 0.02])
    data, generator = features(300, 0), np.random.default_rng(0)
    before = gate_loss(model, data, np.random.default_rng(0)).item()
    descend_gate(model, lambda: gate_loss(model, data, generator), 300, 0.5, lambda *_: None)
    assert model.gating.logit_scale.item() > 5 * 1.5
    assert gate_loss(model, data, np.random.default_rng(0)).item() < before - 0.05
    model.save(tmp_path, tokenizer_of(LLAMA3))
    stored = load_file(tmp_path / "model.safetensors")["gating.logit_scale"]
    assert torch.equal(stored, model.gating.logit_scale.detach())
    temperature = calibration.calibrate(model, data, FINAL, None).temperatures[0]
    model.gating.logit_scale.data *= 0.01
    assert calibration.calibrate(model, data, FINAL, None).temperatures[0] == pytest.approx(
        0.01 * temperature, rel=1e-3
    )
