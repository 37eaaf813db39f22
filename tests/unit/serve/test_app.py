"""Decided before any Ray is touched: names, arguments, ports; and what the gateway must not import."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from doubles import publish_trained
from tunewright.config import ServeConfig
from tunewright.errors import ClusterError, ConfigError, RegistryError, ServeError
from tunewright.registry import Registry

# Ray Serve at its import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")


@pytest.fixture
def app():
    from tunewright.serve import app

    return app


@pytest.fixture
def registry(tmp_store):
    made = Registry(tmp_store)
    for n in (1, 2):
        made.register("desk", *publish_trained(tmp_store, n), run="r")
    made.promote("desk", "prod", 2, "t", "")
    made.promote("desk", "canary", 2, "t", "")
    made.promote("desk", "old", 1, "t", "")
    return made


def test_clients_may_use_every_name_that_means_the_version(app, registry):
    assert app.served_names(registry, registry.resolve("desk@v2")) == [
        "canary",
        "prod",
        "desk@canary",
        "desk@prod",
        "desk@v2",
    ]
    assert app.served_names(registry, registry.resolve("desk@v1")) == ["old", "desk@old", "desk@v1"]


def test_the_shipped_file_names_known_arguments_only(app, repo):
    shipped = yaml.safe_load((repo / "serve" / "chat.yaml").read_text(encoding="utf-8"))
    (application,) = shipped["applications"]
    args = app.AppArgs(**application["args"])
    assert args.model == "quickstart@prod"
    assert application["import_path"] == "tunewright.serve.app:build"
    assert application["name"] == app.APPLICATION
    assert shipped["http_options"]["host"] == "127.0.0.1"
    assert shipped["http_options"]["request_timeout_s"] == app.REQUEST_TIMEOUT_S


def test_build_makes_an_application_of_the_pinned_version(app, registry):
    from ray.serve import Application

    built = app.build({"store": str(registry.store.root), "model": "desk@prod", "max_replicas": 2})
    assert isinstance(built, Application)
    assert (registry.store.root / "keys" / "endpoint.key").exists()


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ({"model": "desk@prod", "max_replica": 2}, ConfigError, r"args\.max_replica"),
        ({}, ConfigError, r"args\.model: Field required"),
        ({"model": "desk@prod", "port": 9000}, ConfigError, r"args\.port: .* `http_options`"),
        (
            {"model": "desk@prod", "min_replicas": 3, "max_replicas": 2},
            ConfigError,
            "min_replicas=3 is above",
        ),
        ({"model": "desk@nope"}, RegistryError, "aliases: canary"),
    ],
)
def test_build_refuses_what_it_cannot_serve(app, registry, args, error, words):
    with pytest.raises(error, match=words):
        app.build({"store": str(registry.store.root), **args})


def test_deploy_needs_a_ray(app, registry, monkeypatch):
    monkeypatch.setattr(app.ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"ray\.init"):
        app.deploy(ServeConfig(), registry.store.root, "desk@prod")


def test_a_port_in_use_is_named_with_what_to_do(app, monkeypatch):
    monkeypatch.setattr(app, "_running_http_options", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {port} on 127\.0\.0\.1 is in use .*serve\.port"):
            app.require_port(ServeConfig(port=port))
    app.require_port(ServeConfig(port=port))


def test_an_address_that_is_not_ours_is_refused(app, monkeypatch):
    monkeypatch.setattr(app, "_running_http_options", lambda: None)
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.1 port 8000"):
        app.require_port(ServeConfig(host="192.0.2.1"))


def test_our_own_serve_may_hold_the_port(app, monkeypatch):
    ours = SimpleNamespace(host="127.0.0.1", port=8123)
    monkeypatch.setattr(app, "_running_http_options", lambda: ours)
    app.require_port(ServeConfig(port=8123))
    with pytest.raises(ServeError, match=r"runs here already, on 127\.0\.0\.1 port 8123"):
        app.require_port(ServeConfig(port=8124))


def test_neither_gateway_nor_deploying_imports_torch():
    script = (
        "import sys\n"
        "import tunewright.serve.app, tunewright.serve.deployment, tunewright.serve.gateway\n"
        "print(sorted({'torch', 'transformers', 'peft', 'deepspeed', 'openai'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "module", ["gateway", "edge", "openai", "engine", "detokenize", "keys", "torch_engine"]
)
def test_only_deployment_and_app_know_ray(module):
    script = f"import sys\nimport tunewright.serve.{module}\nprint('ray' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
