"""Stage explain: what the score of a response is made of, objective by objective; of two responses, what sets them apart.

    prompt and responses (or rows of a file) -> one pass each -> table, explain.json and explain.html

Explains the gated score, sum_k g_k (r T)_k: what pair accuracy is measured on. What a run trains on is made from the same
parts by its aggregation, against references that only a run has; samples.jsonl holds that. Called by driver/commands.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.config.config import Config, ExplainConfig
from common.data.judged import read_answers
from common.files import write_whole
from common.json_text import json_text
from common.types import Message
from driver.evaluate_rm.models import load_model, load_tokenizer
from driver.evaluate_rm.source import serving
from driver.explain.page import write_page
from driver.explain.text import Explained, format_explained, to_dict
from driver.record.progress import say
from rewarder.explain import explain
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses


def explain_responses(config: Config, directory: Path) -> None:
    """Prints the tables and writes explain.json and explain.html to the run's directory. Raises ValueError (DataError,
    CheckpointError, ConversationTooLong) and OSError for what cannot be read or scored."""
    source = serving(config)
    assert source is not None, "the preflight asks for a reward model"
    wanted = requests(config.explain)
    model, tokenizer = load_model(source, config.rewarder), load_tokenizer(source)
    described = f"{source.name} ({source.origin}, version {model.info.rm_version})"
    found = [_explain(model, tokenizer, *request, config.rewarder.max_tokens) for request in wanted]
    say(f"reward model: {described}")
    say("\n\n".join(format_explained(explained) for explained in found))
    rows = [to_dict(explained) for explained in found]
    write_whole(directory / "explain.json", json_text({"model": described, "rows": rows}, indent=1))
    say(f"  {write_page(directory / 'explain.html', described, found)}")


def requests(section: ExplainConfig) -> list[tuple[tuple[Message, ...], dict[str, str]]]:
    """(messages, name -> response) of everything that is to be explained. Raises DataError."""
    if section.file is not None:
        return read_answers(section.file, section.rows)
    assert section.prompt is not None, "the preflight asks for a prompt or a file"
    names = [f"response {n}" for n in range(1, len(section.responses) + 1)]
    return [((Message("user", section.prompt),), dict(zip(names, section.responses, strict=True)))]


def _explain(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    responses: dict[str, str],
    max_tokens: int,
) -> Explained:
    scores, gate = score_responses(model, tokenizer, messages, list(responses.values()), max_tokens)
    matrix = model.reward_transform_matrix.detach().cpu()
    prompt = "\n".join(f"{message.role}: {message.content}" for message in messages)
    return Explained(prompt, responses, model.objectives, explain(scores, gate, matrix))
