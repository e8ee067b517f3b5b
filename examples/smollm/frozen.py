"""What the frozen model says of responses: their log-probabilities, and hidden states for a second reward model.

Called by table.py after the run, when the machine is free: all cores work. Right-padded batches, sorted by length.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.smollm.measures import Row

BATCH_TOKENS = 2048
LAYER = 20  # of 30: the second reward model reads another state than the first, which reads the last

Sequences = Sequence[tuple[list[int], list[int]]]
"""(token ids of the prompt, token ids of the response) of each."""
Say = Callable[[int, int], None]


class FrozenModel:
    """The model of a directory in float32, for passes without gradient."""

    def __init__(self, directory: str | Path) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def sequences(self, rows: Sequence[Row]) -> Sequences:
        """Prompt and response of evaluated rows, the response's tokens as they were sampled."""
        return [(self.prompt_ids(row["messages"]), list(row["token_ids"])) for row in rows]

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation with the answer opened."""
        turns = list(messages)
        ids = self.tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        return cast("list[int]", ids)

    @torch.no_grad()
    def log_probs(self, sequences: Sequences, temperature: float, say: Say) -> tuple[list[float], list[float]]:
        """Returns of each response the mean log-probability of its tokens at temperature 1 (nats a token), and their sum at the
        temperature of sampling (nats), which the policy's own log-probs are compared with. An empty one has 0 and 0."""
        means, sums = [0.0] * len(sequences), [0.0] * len(sequences)
        for indices, ids, mask in self._batches(sequences, say):
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, index in enumerate(indices):
                prompt, response = sequences[index]
                if response:
                    ahead = logits[row, len(prompt) - 1 : len(prompt) + len(response) - 1]
                    said = torch.tensor(response)[:, None]
                    means[index] = float(ahead.log_softmax(-1).gather(1, said).mean())
                    sums[index] = float((ahead / temperature).log_softmax(-1).gather(1, said).sum())
        return means, sums

    @torch.no_grad()
    def mean_states(self, sequences: Sequences, say: Say) -> Tensor:
        """The mean over a response's tokens of the hidden state of layer LAYER, [N, H]."""
        found = torch.zeros(len(sequences), self._model.config.hidden_size)
        for indices, ids, mask in self._batches(sequences, say):
            states = self._model.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            layer = states.hidden_states[LAYER]
            for row, index in enumerate(indices):
                prompt, response = sequences[index]
                if response:
                    found[index] = layer[row, len(prompt) : len(prompt) + len(response)].mean(0)
        return found

    def _batches(self, sequences: Sequences, say: Say) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        lengths = [len(prompt) + len(response) for prompt, response in sequences]
        order, done = sorted(range(len(sequences)), key=lengths.__getitem__), 0
        while done < len(order):
            size = 1
            while done + size < len(order) and (size + 1) * lengths[order[done + size]] <= BATCH_TOKENS:
                size += 1
            indices = order[done : done + size]
            width = lengths[indices[-1]]
            rows = [[*sequences[index][0], *sequences[index][1]] for index in indices]
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            yield indices, ids, torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
            done += size
            say(done, len(order))
