"""The two Ray Serve deployments: a light gateway, and replicas that hold an engine.

The gateway's process imports neither torch nor transformers. A replica imports them when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from tunewright.config import ServeConfig
from tunewright.errors import ConfigError, EngineFailed, QueueFull, ServeError
from tunewright.serve.engine import Delta, GenerateRequest, ServedModel

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 300
"""Answers that are being written when a replica has to go have so long to end."""
DRAIN_POLL_S = 0.5
AUTOSCALING_PACE = {"look_back_period_s": 15, "upscale_delay_s": 5, "downscale_delay_s": 300}
"""A crowd is met within seconds; a replica, slow to load, is kept for minutes."""
GATEWAY_ONGOING = 10_000
"""Far above what the replicas take: refusals are the engine's and the gateway's, in OpenAI's shape."""


class EngineReplica:
    """Holds a `TorchEngine` of one version.

    Args:
        version: `model@v3`.
        names: what clients may call it.
    """

    def __init__(self, store_root: str, version: str, names: Sequence[str], config: dict[str, Any]):
        from tunewright.artifacts import Store
        from tunewright.registry import Registry
        from tunewright.serve.torch_engine import TorchEngine

        store = Store(Path(store_root))
        found = Registry(store).resolve(version)
        self.engine = TorchEngine.load(store, found, names, ServeConfig(**config))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        deltas = self.engine.generate(request)
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def models(self) -> list[ServedModel]:
        return await self.engine.models()

    async def check_health(self) -> None:
        """Called by Ray Serve: a replica whose engine has died is replaced."""
        await self.engine.health()


class RemoteEngine:
    """An `Engine` whose work is done by the replicas of a deployment."""

    def __init__(self, handle: DeploymentHandle[Any]):
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        deltas: Any = self._streaming.generate.remote(request)
        try:
            async for delta in deltas:
                yield delta
        except (GeneratorExit, asyncio.CancelledError):
            # Only here: of a request that failed, cancel() would raise the failure once more.
            with contextlib.suppress(RayError, RayServeException):
                deltas.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise _translated(error) from None

    async def models(self) -> list[ServedModel]:
        try:
            found: list[ServedModel] = await self._handle.models.remote()
            return found
        except (RayError, RayServeException) as error:
            raise _translated(error) from None

    async def health(self) -> None:
        await self.models()


class GatewayReplica:
    """The HTTP interface, in a process of its own."""

    def __init__(self, engine: DeploymentHandle[Any], hashes: Collection[str]):
        self._engine, self._hashes = RemoteEngine(engine), tuple(hashes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from tunewright.serve.gateway import make_app

        return make_app(self._engine, self._hashes)


def application(
    config: ServeConfig, store_root: Path, version: str, names: Sequence[str], hashes: Collection[str]
) -> serve.Application:
    """The Ray Serve application of one version: a gateway before autoscaled replicas.

    Raises:
        ConfigError: no request may wait, which Ray Serve cannot do.
    """
    if config.max_queued_requests < 1:
        raise ConfigError(f"serve.max_queued_requests={config.max_queued_requests}; at least 1 is needed")
    engine: Any = serve.deployment(
        EngineReplica,
        name="Engine",
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            **AUTOSCALING_PACE,
        },
        ray_actor_options={"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus},
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        # The new replica first, then the old one away: no gap. A GPU is rarely there twice.
        max_surge_percent=0 if config.replica_gpus else 100,
    )
    gateway: Any = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="Gateway",
        num_replicas=1,
        max_ongoing_requests=GATEWAY_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        max_surge_percent=100,
    )
    bound = engine.bind(str(store_root), version, list(names), config.model_dump())
    made: serve.Application = gateway.bind(bound, list(hashes))
    return made


def _translated(error: Exception) -> ServeError:
    """What a client may know of an error that came through Ray."""
    if isinstance(error, BackPressureError):
        return QueueFull("the queue is full; try again later", code="queue_full")
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ServeError):
        return cause
    log.error("engine replica failed", exc_info=error)
    return EngineFailed("the engine that was writing the answer is lost; try again", code="engine_lost")
