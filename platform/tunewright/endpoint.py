"""`tunewright deploy`: puts a registered model behind an endpoint and keeps it up until Ctrl-C."""

from __future__ import annotations

import logging
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts import Store
from tunewright.config import ServeConfig, default_store_root, load_run
from tunewright.console import print_json
from tunewright.errors import ConfigError, ServeError
from tunewright.ray_local import local_ray
from tunewright.registry import Registry

if TYPE_CHECKING:
    from tunewright.serve.app import Endpoint

HEALTH_PERIOD_S = 2.0
LOST_AFTER = 15
"""Health checks in a row without an answer, after which the endpoint is given up."""


def keep_up(
    config: Path | None,
    sets: Sequence[str],
    model: str | None,
    address: str | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Deploy, say how to ask it, and stay until Ctrl-C, which is the normal end.

    Raises:
        ConfigError: the description is wrong; nothing was started.
        RegistryError: there is no such model, version or alias; nothing was started.
        ServeError: the port is in use, or the endpoint does not come up or stops answering.
    """
    serve_config, root, ref = _what(config, sets, model, store)
    version = Registry(Store(root)).resolve(ref)
    try:
        with _connected(address):
            from tunewright.serve.app import deploy, shutdown
            from tunewright.serve.keys import endpoint_key

            print(f"deploying {version.name}", file=sys.stderr, flush=True)
            try:
                endpoint = deploy(serve_config, root, ref)
                _announce(endpoint, endpoint_key(root), as_json)
                _watch(endpoint)
            finally:
                shutdown()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)


def _what(
    config: Path | None, sets: Sequence[str], model: str | None, store: Path | None
) -> tuple[ServeConfig, Path, str]:
    """How to serve, from which store, and the reference of the model."""
    if config is None:
        if sets:
            raise ConfigError("--set changes a configuration: give its file too")
        serve = ServeConfig()
        return serve, (store or default_store_root()).expanduser().absolute(), model or serve.alias
    run = load_run(config, sets)
    serve = run.serve or ServeConfig()
    return serve, (store or run.store_root).expanduser().absolute(), model or f"{run.name}@{serve.alias}"


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A driver of the Ray at `address`, or of one of our own."""
    if address is None:
        print("starting a local Ray", file=sys.stderr, flush=True)
        with local_ray() as local, _connected(local.gcs_address):
            yield
        return
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, namespace="tunewright", logging_level=logging.WARNING, log_to_driver=False)
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()


def _announce(endpoint: Endpoint, key: str, as_json: bool) -> None:
    url = endpoint.url.rstrip("/")
    if as_json:
        print_json({"url": url, "model": endpoint.model, "version": endpoint.version, "key": key})
        sys.stdout.flush()
        return
    print(
        f"""
{endpoint.version} answers at {url}
  model  {endpoint.model}
  key    {key}

  curl {url}/chat/completions \\
    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
    -d '{{"model": "{endpoint.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  tunewright chat --url {url}

Ctrl-C stops it.""",
        flush=True,
    )


def _watch(endpoint: Endpoint) -> None:
    """Return never; raise when the endpoint has stopped answering."""
    health = endpoint.url.rstrip("/").removesuffix("/v1") + "/healthz"
    silent = 0
    while silent < LOST_AFTER:
        time.sleep(HEALTH_PERIOD_S)
        try:
            with urllib.request.urlopen(health, timeout=10):  # noqa: S310 - http, our own endpoint
                silent = 0
        except OSError:
            silent += 1
    raise ServeError(f"{endpoint.url} has stopped answering; deploy it again")
