"""Batched decoding: the same tokens as one by one, and as transformers' own generate."""

from __future__ import annotations

import pytest
import torch

from doubles import tiny_llama
from tunewright.errors import DataError, ModelError
from tunewright.models.decode import Sampling, decode_batch

STOP, PAD = 2, 0
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21, 22]]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocab_size=96)


def decode(model, prompts, sampling, stop_ids=frozenset({STOP}), cancelled=None):
    """The tokens of each sequence."""
    out: list[list[int]] = [[] for _ in prompts]
    for step in decode_batch(model, prompts, sampling, stop_ids, PAD, cancelled):
        for tokens, token in zip(out, step, strict=True):
            if token is not None:
                tokens.append(token)
    return out


def test_batch_equals_one_by_one_for_prompts_of_different_lengths(model):
    lengths = [12, 3, 20, 7, 1]
    sampling = [Sampling(n) for n in lengths]
    together = decode(model, PROMPTS, sampling)
    alone = [decode(model, [p], [s])[0] for p, s in zip(PROMPTS, sampling, strict=True)]
    assert together == alone
    assert [len(tokens) for tokens in decode(model, PROMPTS, sampling, frozenset())] == lengths


def test_greedy_equals_transformers_generate(model):
    for prompt in PROMPTS:
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert decode(model, [prompt], [Sampling(16)]) == [expected]


def test_the_stop_token_is_the_last_one_given(model):
    free = decode(model, PROMPTS, [Sampling(10)] * 5, frozenset())
    stop = free[0][4]
    stopped = decode(model, PROMPTS, [Sampling(10)] * 5, frozenset({stop}))
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    for cut, whole in zip(stopped, free, strict=True):
        assert cut == whole[: len(cut)]
        assert len(cut) == len(whole) or cut[-1] == stop


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(model):
    sampling = [Sampling(24, temperature=1.3, top_p=0.9, seed=100 + i) for i in range(5)]
    together = decode(model, PROMPTS, sampling, frozenset())
    alone = [decode(model, [p], [s], frozenset())[0] for p, s in zip(PROMPTS, sampling, strict=True)]
    assert together == alone
    assert decode(model, PROMPTS[:1], [Sampling(24, 1.3, 0.9, seed=7)], frozenset())[0] != together[0]


def test_greedy_and_sampled_sequences_share_a_batch(model):
    greedy = decode(model, PROMPTS[:1], [Sampling(8)], frozenset())[0]
    mixed = decode(model, PROMPTS[:2], [Sampling(8), Sampling(8, temperature=1.0, seed=3)], frozenset())
    assert mixed[0] == greedy


def test_without_a_seed_two_draws_differ(model):
    first, second = decode(model, PROMPTS[:1] * 2, [Sampling(32, temperature=2.0)] * 2, frozenset())
    assert first != second


def test_a_small_top_p_is_greedy(model):
    greedy = decode(model, PROMPTS, [Sampling(10)] * 5)
    assert decode(model, PROMPTS, [Sampling(10, temperature=1.0, top_p=1e-9, seed=1)] * 5) == greedy


def test_draws_follow_the_probabilities(model):
    scores = torch.log(torch.tensor([0.6, 0.3, 0.1]))
    from tunewright.models.decode import _draw

    generator = torch.Generator().manual_seed(0)
    drawn = [_draw(scores, Sampling(1, temperature=1.0), generator) for _ in range(4000)]
    shares = [drawn.count(token) / len(drawn) for token in range(3)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    nucleus = {_draw(scores, Sampling(1, temperature=1.0, top_p=0.85), generator) for _ in range(400)}
    assert nucleus == {0, 1}


def test_a_cancelled_sequence_ends_and_the_others_go_on(model):
    whole = decode(model, PROMPTS[:3], [Sampling(10)] * 3, frozenset())
    gone: set[int] = set()
    out: list[list[int]] = [[], [], []]
    for step in decode_batch(model, PROMPTS[:3], [Sampling(10)] * 3, frozenset(), PAD, gone.__contains__):
        for tokens, token in zip(out, step, strict=True):
            if token is not None:
                tokens.append(token)
        if len(out[1]) == 4:
            gone.add(1)
    assert out == [whole[0], whole[1][:4], whole[2]]


def test_decoding_ends_at_once_when_all_are_cancelled(model):
    assert decode(model, PROMPTS, [Sampling(10)] * 5, cancelled=lambda i: True) == [[]] * 5


def test_the_caller_is_not_left_in_inference_mode(model):
    steps = decode_batch(model, PROMPTS[:1], [Sampling(3)], frozenset(), PAD)
    next(steps)
    assert not torch.is_inference_mode_enabled()
    steps.close()


def test_no_prompts_give_no_steps(model):
    assert list(decode_batch(model, [], [], frozenset(), PAD)) == []


@pytest.mark.parametrize(
    ("prompts", "sampling", "words"),
    [
        ([[1], []], [Sampling(1)] * 2, "a prompt has no tokens"),
        ([[1]], [], "1 prompts but 0 samplings"),
    ],
)
def test_unusable_input_is_refused(model, prompts, sampling, words):
    with pytest.raises(DataError, match=words):
        list(decode_batch(model, prompts, sampling, frozenset(), PAD))


@pytest.mark.parametrize(
    "values", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}]
)
def test_sampling_out_of_range_is_refused(values):
    with pytest.raises(DataError, match=next(iter(values))):
        Sampling(**{"max_new_tokens": 1, **values})


def test_weights_that_are_not_finite_are_an_error_and_not_an_answer():
    broken = tiny_llama(vocab_size=96)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        decode(broken, PROMPTS[:1], [Sampling(2)])
