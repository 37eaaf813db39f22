"""The torch engine over random weights: the same tokens as plain decoding, whatever else is asked at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from doubles import publish_version
from tunewright.artifacts import Store
from tunewright.config import ServeConfig
from tunewright.errors import BadRequest, EngineFailed, ModelNotFound, StoreError
from tunewright.models.base import model_folder
from tunewright.models.decode import Sampling, decode_batch
from tunewright.models.load import load_model, load_renderer
from tunewright.registry import Registry
from tunewright.serve.engine import GenerateRequest
from tunewright.serve.torch_engine import TorchEngine

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIG = ServeConfig(max_new_tokens=24, max_batch_size=8)
PROMPTS = ["fox", "the quick brown dog", "jumps over", "x", "lazy lazy lazy lazy", "é€😀"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def version(store):
    return publish_version(store)


@pytest.fixture(scope="module")
def engine(store, version):
    loaded = TorchEngine.load(store, version, ["prod", "desk@v1"], CONFIG)
    yield loaded
    loaded.close()


def chat(text, model="prod", **fields):
    messages = ({"role": "user", "content": text},)
    return GenerateRequest(model, messages=messages, **{"temperature": 0.0, **fields})


async def answer(engine, request):
    """(whole text, last delta without its text) of one request."""
    text, last = "", None
    async for delta in engine.generate(request):
        text, last = text + delta.text, delta
    return text, replace(last, text="")


def ask(engine, *requests):
    """The answers to requests made at once, in their order."""

    async def together():
        return await asyncio.gather(*(answer(engine, request) for request in requests))

    return asyncio.run(together())


def decoded(store, version, text, adapter):
    """The answer without an engine: one prompt, plain greedy decoding."""
    train = store.load(version.train)
    folder = model_folder(store.load(version.base))
    model = load_model(folder, train.path / "adapter" if adapter else None, torch.float32)
    renderer = load_renderer(train.path / "tokenizer")
    prompt = renderer.prompt([{"role": "user", "content": text}])
    ids = [s[0] for s in decode_batch(model, [prompt], [Sampling(24)], renderer.stop_ids, renderer.pad_id)]
    return renderer.text(ids).rstrip("\ufffd"), len(prompt), len(ids)


def test_the_served_answer_is_the_decoded_one(engine, store, version):
    for text in PROMPTS:
        ((served, last),) = ask(engine, chat(text))
        assert (served, last.prompt_tokens, last.completion_tokens) == decoded(store, version, text, True)
        assert (last.version, last.finish_reason) == (
            "desk@v1",
            "length" if last.completion_tokens == 24 else "stop",
        )


def test_the_base_answers_beside_the_tuned_model(engine, store, version):
    tuned, base = ask(engine, chat("fox"), chat("fox", model="base"))
    assert base[0] == decoded(store, version, "fox", False)[0]
    assert tuned[0] == decoded(store, version, "fox", True)[0]
    assert base[0] != tuned[0]
    assert base[1].version == version.base


def test_answers_asked_at_once_are_those_asked_alone(engine):
    requests = [chat(text, model) for text in PROMPTS for model in ("prod", "base")]
    alone = [ask(engine, request)[0] for request in requests]
    assert ask(engine, *requests) == alone
    assert len({text for text, _ in alone}) > len(PROMPTS)


def test_requests_at_once_are_decoded_together(engine, monkeypatch):
    sizes = []

    def counted(group, tickets, decode=engine._batcher._decode):
        sizes.append(len(tickets))
        return decode(group, tickets)

    monkeypatch.setattr(engine._batcher, "_decode", counted)
    ask(engine, *(chat(text) for text in PROMPTS))
    assert sum(sizes) == len(PROMPTS)
    assert max(sizes) >= 2


def test_a_seed_gives_the_same_text_alone_and_among_others(engine):
    request = chat("fox", temperature=1.5, top_p=0.95, seed=11)
    alone = ask(engine, request)[0]
    crowd = [chat(text, temperature=1.5, seed=n) for n, text in enumerate(PROMPTS)]
    assert ask(engine, *crowd, request)[-1] == alone
    drawn = {text for text, _ in ask(engine, *(chat("fox", temperature=1.5) for _ in range(4)))}
    assert len(drawn) > 1


def test_a_stream_and_a_whole_answer_are_the_same(engine):
    async def deltas(request):
        return [delta async for delta in engine.generate(request)]

    for text in PROMPTS:
        streamed = asyncio.run(deltas(chat(text, stream=True)))
        whole = asyncio.run(deltas(chat(text, stream=False)))
        assert "".join(d.text for d in streamed) == "".join(d.text for d in whole)
        assert [d.text for d in whole[:-1]] == [""]
        assert streamed[0].text == "" and streamed[0].completion_tokens == 0
        assert [d.finish_reason for d in streamed[:-1]] == [None] * (len(streamed) - 1)
        assert replace(streamed[-1], text="") == replace(whole[-1], text="")


def test_a_stop_string_ends_the_answer_before_it(engine):
    whole = ask(engine, chat("fox"))[0][0]
    middle = len(whole) // 2
    stop = whole[middle : middle + 2]
    text, last = ask(engine, chat("fox", stop=(stop, "never there")))[0]
    assert text == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"
    assert last.completion_tokens < 24


def test_max_tokens_bounds_the_answer(engine):
    _, last = ask(engine, chat("fox", max_new_tokens=3))[0]
    assert (last.completion_tokens, last.finish_reason) == (3, "length")


def test_a_plain_prompt_is_completed_as_it_stands(engine, store, version):
    renderer = load_renderer(store.load(version.train).path / "tokenizer")
    _, last = ask(engine, GenerateRequest("prod", prompt="the quick", temperature=0.0))[0]
    assert last.prompt_tokens == len(renderer.tokenizer("the quick")["input_ids"])


def test_an_answer_ends_where_the_context_does(engine):
    ids = engine._renderer.tokenizer("x " * 60, add_special_tokens=False)["input_ids"]
    assert 104 < len(ids) < 128
    _, last = ask(engine, GenerateRequest("prod", prompt="x " * 60, temperature=0.0, max_new_tokens=24))[0]
    assert last.prompt_tokens + last.completion_tokens <= 128


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (chat("fox", model="nope"), ModelNotFound, "models: prod, desk@v1, base"),
        (chat("fox", max_new_tokens=25), BadRequest, "max_tokens=25 is above this endpoint's bound of 24"),
        (chat("word " * 200), BadRequest, "the model holds 128"),
        (GenerateRequest("prod", prompt="word " * 200), BadRequest, "the model holds 128"),
        (GenerateRequest("prod", prompt=""), BadRequest, "the prompt is empty"),
        (GenerateRequest("prod", messages=({"role": "user", "content": " "},)), BadRequest, "has no text"),
        (
            GenerateRequest("prod", messages=({"role": "assistant", "content": "a"},)),
            BadRequest,
            "assistant's",
        ),
        (
            GenerateRequest("prod", messages=({"role": "user", "content": "a"},) * 500),
            BadRequest,
            "the model holds",
        ),
        (chat("a<|end|>"), BadRequest, "special token"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_text(engine, request_, error, words):
    with pytest.raises(error, match=words) as caught:
        ask(engine, request_)
    assert caught.value.param in ("model", "messages", "prompt", "max_tokens")


def test_leaving_early_frees_the_engine(engine):
    async def leave():
        deltas = engine.generate(chat("fox"))
        async for delta in deltas:
            if delta.text:
                break
        await deltas.aclose()
        # All of the queue's places are free again.
        return await asyncio.gather(*(answer(engine, chat("x")) for _ in range(CONFIG.max_ongoing_requests)))

    assert len({text for text, _ in asyncio.run(leave())}) == 1


def test_one_failing_request_does_not_take_others_with_it(engine, monkeypatch, caplog):
    expected = ask(engine, chat("jumps over"))[0]
    bad = engine._renderer.prompt([{"role": "user", "content": "fox"}])

    def breaking(group, tickets, decode=engine._batcher._decode):
        for n, step in enumerate(decode(group, tickets)):
            if n == 2 and any(t.prompt == bad for t in tickets):
                raise RuntimeError("out of luck")
            yield step

    monkeypatch.setattr(engine._batcher, "_decode", breaking)

    async def both():
        return await asyncio.gather(
            answer(engine, chat("jumps over")), answer(engine, chat("fox")), return_exceptions=True
        )

    good, failed = asyncio.run(both())
    assert good == expected
    assert isinstance(failed, EngineFailed)
    assert "out of luck" not in str(failed)


def test_health_fails_when_the_decoding_thread_has_ended(store, version):
    ended = TorchEngine.load(store, version, ["prod"], CONFIG)
    asyncio.run(ended.health())
    ended.close()
    with pytest.raises(EngineFailed, match="has ended"):
        asyncio.run(ended.health())


def test_models_are_the_names_and_the_base(engine, version):
    served = asyncio.run(engine.models())
    assert [(m.id, m.version, m.base) for m in served] == [
        ("prod", "desk@v1", version.base),
        ("desk@v1", "desk@v1", version.base),
        ("base", version.base, None),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fully_trained_model_is_served_with_its_base(store, precision):
    full = publish_version(store, model="whole", method="full", seed=5)
    served = TorchEngine.load(store, full, ["prod"], CONFIG.model_copy(update={"precision": precision}))
    try:
        tuned, base = ask(served, chat("fox"), chat("fox", model="base"))
        assert tuned[0] != base[0]
        assert (tuned[1].version, base[1].version) == ("whole@v1", full.base)
    finally:
        served.close()


def test_damaged_weights_are_not_served(store):
    damaged = publish_version(store, model="damaged", seed=9)
    weights = store.load(damaged.train).path / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors does not match"):
        TorchEngine.load(store, damaged, ["prod"], CONFIG)
    assert Registry(store).resolve("damaged@prod") == damaged
