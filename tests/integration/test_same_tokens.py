"""Output tokens are bit-identical with and without inferscope."""

from __future__ import annotations

import pytest
import torch

import inferscope

PROMPTS = [
    "What is the capital of France?",
    "Name three rivers.",
    "Count to five.",
    "Why is the sky blue?",
    "Translate 'good morning' into German.",
    "Write a haiku about rain.",
    "2 + 2 =",
    "List the planets.",
    "Who wrote Hamlet?",
    "What is a prime number?",
    "Explain gravity to a child.",
    "Give me a word that rhymes with 'light'.",
    "What is the boiling point of water?",
    "Is a tomato a fruit?",
    "Say hello.",
    "What does HTTP stand for?",
    "Describe a cat in one sentence.",
    "How many days are in a year?",
    "Name a colour.",
    "What is the opposite of hot?",
]


@pytest.mark.smollm2
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 0.9, "top_k": 40}])
def test_twenty_prompts_on_a_real_model(smollm2, options):
    def answers():
        out = []
        for seed, prompt in enumerate(PROMPTS):
            inputs = smollm2.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            torch.manual_seed(seed)
            out.append(smollm2.model.generate(**inputs, max_new_tokens=4, **options)[0].tolist())
        return out

    bare = answers()
    with inferscope.trace(smollm2.model, detail="passes") as session:
        traced = answers()
    assert traced == bare
    assert len(session.results) == len(PROMPTS)
    for result in session.results:
        record = result.record
        assert record.ledger.total_ns == record.wall_ns
        assert record.ledger.residual_ns < 0.01 * record.wall_ns


def test_sampling_while_the_operators_are_counted(llama, prompt):
    """Counting runs on another thread during the first requests and must not touch the global generator."""

    def sample():
        torch.manual_seed(7)
        return [llama.generate(prompt, max_new_tokens=12, do_sample=True).tolist() for _ in range(15)]

    bare = sample()
    llama.config.rope_theta = 12345.0  # a configuration of its own: its cost is in no cache
    with inferscope.trace(llama, sinks=()) as session:
        assert sample() == bare
    assert session.last.record.model.cost is not None
