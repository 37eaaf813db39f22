"""The endpoint on a real Ray Serve, asked with the official client: answers, refusals, replacement, loss."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
import yaml

from doubles import publish_version
from tunewright.artifacts import Store
from tunewright.config import ServeConfig
from tunewright.errors import RegistryError, ServeError
from tunewright.models.base import model_folder
from tunewright.models.decode import Sampling, decode_batch
from tunewright.models.load import load_model, load_renderer
from tunewright.registry import Registry
from tunewright.serve.keys import endpoint_key

pytestmark = [
    pytest.mark.cluster,
    # Third parties: PEFT at every load, Ray Serve at its import.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),
]

HELLO = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def version(store):
    return publish_version(store, context=4096, endless=True)


@pytest.fixture(scope="module")
def config():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return ServeConfig(
        port=port, max_new_tokens=4000, max_batch_size=2, max_ongoing_requests=2, max_queued_requests=2
    )


@pytest.fixture(scope="module")
def endpoint(ray_cluster, store, version, config):
    from tunewright.serve.app import deploy, shutdown

    yield deploy(config, store.root, "desk@prod", wait_s=90)
    shutdown()


@pytest.fixture
def client(endpoint, store):
    with openai.OpenAI(
        base_url=endpoint.url, api_key=endpoint_key(store.root), max_retries=0, timeout=60
    ) as opened:
        yield opened


def expected(store, version, tokens):
    """The greedy answer of the version to HELLO, without any server."""
    train = store.load(version.train)
    model = load_model(model_folder(store.load(version.base)), train.path / "adapter", torch.float32)
    renderer = load_renderer(train.path / "tokenizer")
    prompt = renderer.prompt(HELLO)
    steps = decode_batch(model, [prompt], [Sampling(tokens)], renderer.stop_ids, renderer.pad_id)
    return renderer.text([step[0] for step in steps]).rstrip("\ufffd"), len(prompt)


def test_a_port_in_use_is_named_before_anything_starts(ray_cluster, store, version):
    import ray

    from tunewright.serve.app import deploy, shutdown

    shutdown()  # whatever an earlier module left
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {port} on 127.0.0.1 is in use .* choose another port"):
            deploy(ServeConfig(port=port), store.root, "desk@prod")
    with pytest.raises(ValueError, match="SERVE_CONTROLLER"):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")


def test_a_version_that_is_not_there_is_refused_before_anything_starts(ray_cluster, store, version):
    from tunewright.serve.app import deploy

    with pytest.raises(RegistryError, match="desk has no alias canary; aliases: prod"):
        deploy(ServeConfig(), store.root, "desk@canary")


def test_the_answer_is_the_decoded_one(endpoint, client, store, version):
    assert endpoint.url.endswith("/v1")
    assert (endpoint.model, endpoint.version) == ("desk@prod", "desk@v1")
    text, prompt_tokens = expected(store, version, 40)
    raw = client.chat.completions.with_raw_response.create(
        model="prod", messages=HELLO, temperature=0, max_tokens=40
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == text
    assert answer.usage.prompt_tokens == prompt_tokens
    assert raw.headers["x-tunewright-version"] == "desk@v1"
    assert len(raw.headers["x-tunewright-template"]) == 12


def test_a_stream_arrives_in_pieces_and_is_the_whole_answer(client, store, version):
    text, _ = expected(store, version, 400)
    chunks = list(
        client.chat.completions.create(
            model="desk@v1",
            messages=HELLO,
            temperature=0,
            max_tokens=400,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert chunks[-1].usage.completion_tokens <= 400


def test_plain_completions_and_the_base_are_served(client):
    answer = client.completions.create(model="base", prompt="the quick", temperature=0, max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.model.startswith("base/")
    assert {m.id for m in client.models.list()} == {"prod", "desk@prod", "desk@v1", "base"}


def test_refusals_keep_their_status_and_shape_through_the_cluster(client, endpoint):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=endpoint.url, api_key="tw-wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert unknown.value.body["code"] == "model_not_found"
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                model="prod", messages=[{"role": "user", "content": "w " * 9000}], stream=stream
            )
        assert long.value.body["code"] == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as field:
        client.chat.completions.create(model="prod", messages=HELLO, logprobs=True)
    assert field.value.body["param"] == "logprobs"
    root = endpoint.url.removesuffix("/v1")
    assert httpx.get(f"{root}/readyz").status_code == 200
    assert httpx.get(f"{root}/nope").status_code == 401


def test_over_capacity_is_429_with_retry_after_and_nothing_else(client):
    def ask(_):
        try:
            client.chat.completions.create(model="prod", messages=HELLO, temperature=0, max_tokens=600)
        except openai.APIStatusError as error:
            return error.status_code, error.response.headers.get("retry-after")
        return 200, None

    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(ask, range(16)))
    assert set(seen) == {(200, None), (429, "1")}
    assert ask(0) == (200, None)


def test_hanging_up_frees_the_replica(client, endpoint, store):
    def timed(tokens):
        begun = time.monotonic()
        client.chat.completions.create(model="prod", messages=HELLO, temperature=0, max_tokens=tokens)
        return time.monotonic() - begun

    whole_s = timed(3000)
    body = {"model": "prod", "messages": HELLO, "temperature": 0, "max_tokens": 3000}
    headers = {"authorization": f"Bearer {endpoint_key(store.root)}"}
    url = f"{endpoint.url}/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, headers=headers, timeout=0.3)
    # Requests are decoded batch after batch: this one would have to wait for the abandoned answer.
    assert timed(4) < whole_s / 2
    with httpx.stream("POST", url, json=body | {"stream": True}, headers=headers, timeout=30) as reply:
        next(reply.iter_lines())
    assert timed(4) < whole_s / 2


def test_a_lost_replica_ends_its_stream_with_an_error_and_is_replaced(client, endpoint):
    import ray

    (replica,) = (
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if "tunewright#Engine" in actor["name"]
    )
    stream = client.chat.completions.create(
        model="prod", messages=HELLO, temperature=0, max_tokens=4000, stream=True
    )
    with pytest.raises(openai.APIError, match="engine that was writing the answer is lost"):
        for number, _ in enumerate(stream):
            if number == 3:
                ray.kill(ray.get_actor(replica, namespace="serve"))
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = client.chat.completions.create(model="prod", messages=HELLO, temperature=0, max_tokens=4)
            break
        except openai.APIStatusError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert answer.usage.completion_tokens == 4


def test_another_version_takes_over_on_the_same_port_without_a_failed_request(
    endpoint, client, store, config
):
    from tunewright.serve.app import deploy

    second = publish_version(store, seed=1, context=4096, endless=True)
    assert Registry(store).resolve("desk@prod") == second
    answered, over = [], threading.Event()

    def keep_asking():
        while not over.is_set():
            try:
                reply = client.chat.completions.create(
                    model="prod", messages=HELLO, temperature=0, max_tokens=20
                )
                answered.append(reply.model)
            except openai.APIError as error:
                answered.append(error)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        assert deploy(config, store.root, "desk@prod", wait_s=90).version == "desk@v2"
        time.sleep(0.5)
    finally:
        over.set()
        asking.join(60)
    assert set(answered) == {"desk@v1", "desk@v2"}
    text, _ = expected(store, second, 20)
    reply = client.chat.completions.create(model="prod", messages=HELLO, temperature=0, max_tokens=20)
    assert reply.choices[0].message.content == text


def test_a_running_serve_does_not_move_to_another_port(endpoint, store, config):
    from tunewright.serve.app import deploy

    with pytest.raises(ServeError, match=rf"runs here already, on 127.0.0.1 port {config.port}"):
        deploy(config.model_copy(update={"port": config.port + 1}), store.root, "desk@prod")


@pytest.mark.slow
def test_serve_deploy_takes_the_shipped_file(repo, store, version, tmp_path):
    shipped = yaml.safe_load((repo / "serve" / "chat.yaml").read_text(encoding="utf-8"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = shipped["http_options"]["port"] = probe.getsockname()[1]
    (application,) = shipped["applications"]
    application["args"] |= {"store": str(store.root), "model": "desk@v1"}
    file = tmp_path / "chat.yaml"
    file.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    script = (
        "import subprocess, sys, time, urllib.request\n"
        "from tunewright.ray_local import local_ray\n"
        "with local_ray(num_cpus=2) as ray:\n"
        "    serve = [sys.executable, '-m', 'ray.serve.scripts', 'deploy', sys.argv[1], '-a', ray.address]\n"
        "    subprocess.run(serve, check=True, timeout=60)\n"
        "    deadline = time.monotonic() + 90\n"
        "    while True:\n"
        "        try:\n"
        "            key = {'Authorization': 'Bearer ' + sys.argv[3]}\n"
        "            ask = urllib.request.Request(sys.argv[2], headers=key)\n"
        "            print(urllib.request.urlopen(ask, timeout=5).read().decode())\n"
        "            break\n"
        "        except OSError:\n"
        "            assert time.monotonic() < deadline\n"
        "            time.sleep(0.2)\n"
    )
    url, key = f"http://127.0.0.1:{port}/version", endpoint_key(store.root)
    command = [sys.executable, "-c", script, str(file), url, key]
    env = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["models"]["desk@v1"]["version"] == "desk@v1"
