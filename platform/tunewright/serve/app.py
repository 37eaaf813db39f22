"""Starts, checks and stops the endpoint on a running Ray; `build` is what `serve deploy` calls."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import Field, ValidationError
from ray import serve
from ray.serve.schema import ApplicationStatus

from tunewright.artifacts import Store
from tunewright.config import ServeConfig, default_store_root
from tunewright.errors import ClusterError, ConfigError, ServeError
from tunewright.registry import Registry, Version
from tunewright.serve.deployment import application
from tunewright.serve.keys import endpoint_key, key_hash

log = logging.getLogger(__name__)

APPLICATION = "tunewright"
REQUEST_TIMEOUT_S = 600
POLL_S = 0.1
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers.

    Attributes:
        url: base URL for OpenAI's clients, `http://127.0.0.1:8000/v1`.
        model: what clients write as `model`.
        version: what answers now, `quickstart@v1`.
    """

    url: str
    model: str
    version: str


class AppArgs(ServeConfig):
    """`args:` of the application in a Serve configuration file."""

    store: str | None = None
    """Folder of artifacts and the registry; `$TUNEWRIGHT_STORE`, else `~/.tunewright`, when null."""
    model: str = Field(min_length=1)
    """What to serve: NAME@ALIAS or NAME@v3."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application for `serve deploy`. The alias is pinned: a later move of it changes nothing here.

    Raises:
        ConfigError: an unknown or wrong argument.
        RegistryError: there is no such version.
    """
    for name in ("host", "port"):
        if name in args:
            raise ConfigError(f"args.{name}: the address is set in `http_options`, not in `args`")
    try:
        found = AppArgs(**args)
    except ValidationError as error:
        told = [f"args.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(told)) from None
    config = ServeConfig(**found.model_dump(exclude={"store", "model"}))
    root = default_store_root() if found.store is None else Path(found.store).expanduser()
    return _pinned(config, Store(root), found.model)[0]


def deploy(config: ServeConfig, store_root: Path, model: str, wait_s: float = 120) -> Endpoint:
    """Serve `model` on this process's Ray and return when it answers.

    Args:
        model: NAME@ALIAS, NAME@v3 or an alias that only one model has.
    Raises:
        RegistryError: there is no such version; nothing was started.
        ServeError: the port is in use (nothing was started), or there is no answer within `wait_s`.
        ClusterError: this process is not connected to a Ray.
    """
    deadline = time.monotonic() + wait_s
    app, version = _pinned(config, Store(store_root), model)
    if not ray.is_initialized():
        raise ClusterError("this process is not connected to a Ray: call ray.init() first")
    require_port(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is ours to tell
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_TIMEOUT_S},
    )
    serve.run_many(
        [serve.RunTarget(app, name=APPLICATION, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    host = "127.0.0.1" if config.host in WILDCARDS else config.host
    _wait_until_running(deadline, wait_s)
    _wait_until_answering(host, config.port, endpoint_key(store_root), version, deadline, wait_s)
    log.info("endpoint answers", extra={"version": version.name, "port": config.port})
    return Endpoint(f"http://{host}:{config.port}/v1", model, version.name)


def shutdown() -> None:
    """Stop the endpoint and Ray Serve; answers that are being written end first."""
    serve.shutdown()


def served_names(registry: Registry, version: Version) -> list[str]:
    """What clients may write as `model`: every alias that means the version now, and its own name."""
    aliases = [alias for alias, number in registry.aliases(version.model).items() if number == version.number]
    return [*aliases, *(f"{version.model}@{alias}" for alias in aliases), version.name]


def _pinned(config: ServeConfig, store: Store, model: str) -> tuple[serve.Application, Version]:
    registry = Registry(store)
    version = registry.resolve(model)
    hashes = [key_hash(endpoint_key(store.root))]
    names = served_names(registry, version)
    return application(config, store.root, version.name, names, hashes), version


def require_port(config: ServeConfig) -> None:
    """Raises `ServeError` unless our own Serve listens on the port already, or anybody could."""
    running = _running_http_options()
    if running is not None:
        if (running.host, running.port) == (config.host, config.port):
            return
        raise ServeError(
            f"Ray Serve runs here already, on {running.host} port {running.port}, and cannot move "
            f"to {config.host} port {config.port}: set serve.port={running.port}, "
            f"or stop it first (`serve shutdown`)"
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServeError(
                    f"cannot listen on {config.host} port {config.port}: {error.strerror}"
                ) from None
            raise ServeError(
                f"port {config.port} on {config.host} is in use by another program: stop that program, "
                f"or choose another port (serve.port)"
            ) from None


def _running_http_options() -> Any:
    """Where the Serve of this Ray listens; None when there is none."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config


def _wait_until_running(deadline: float, wait_s: float) -> None:
    while True:
        status = serve.status().applications.get(APPLICATION)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return
        said = _reasons(status)
        if status is not None and status.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServeError(f"the endpoint failed to start: {said}")
        if time.monotonic() > deadline:
            raise ServeError(f"the endpoint did not start within {wait_s:.0f} s: {said}")
        time.sleep(POLL_S)


def _reasons(status: Any) -> str:
    """What Serve says of an application and of each of its deployments."""
    if status is None:
        return "Ray Serve does not know it yet"
    told = [status.message, *(d.message for d in status.deployments.values())]
    return " | ".join(text.strip() for text in told if text.strip()) or str(status.status)


def _wait_until_answering(
    host: str, port: int, key: str, version: Version, deadline: float, wait_s: float
) -> None:
    """Return when /readyz is positive and the new version, not an older one, answers."""
    said = "no answer"
    while True:
        try:
            ready, _ = _get(host, port, "/readyz", key)
            answered, body = _get(host, port, "/version", key)
            serving = {m["version"] for m in body.get("models", {}).values()}
            if (ready, answered) == (200, 200) and version.name in serving:
                return
            said = f"/readyz {ready}, /version {answered}, serving {', '.join(sorted(serving)) or 'nothing'}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
        if time.monotonic() > deadline:
            raise ServeError(f"http://{host}:{port} does not answer within {wait_s:.0f} s: {said}")
        time.sleep(POLL_S)


def _get(host: str, port: int, path: str, key: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        reply = connection.getresponse()
        found = json.loads(reply.read())
        return reply.status, found if isinstance(found, dict) else {}
    finally:
        connection.close()
