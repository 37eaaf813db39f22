"""Every error that Tunewright raises on purpose.

    TunewrightError
      ConfigError            the user's YAML, `--set` or command line
      StoreError             the artifact store: unwritable, full, locked, damaged
        StoreLocked          another run is making the same thing
      DataError              sources, rows, shards
        ShardCorrupt         a shard does not match its manifest
      ModelError             a base model, tokenizer or adapter that cannot be used
      ClusterError           Ray: not there, or smaller than the run asks for
      TrainError             the training loop
        NonFiniteLoss        stopped before the optimizer step
        ResumeMismatch       a checkpoint of another run
        CheckpointCorrupt    a checkpoint that does not match its manifest
      EvaluateError          tasks and generation
      RegistryError          versions and aliases
        GateRefused          the figures do not allow promotion
      ServeError             anything a client of the endpoint sees; knows its HTTP status
        BadRequest 400, Unauthorized 401, ModelNotFound 404, QueueFull 429, EngineFailed 500

Messages say what, the value, and what would be right. Whatever crosses a process keeps its
fields: such classes define `__reduce__`.
"""

from __future__ import annotations

from typing import Any


class TunewrightError(Exception):
    """Base of all errors raised on purpose; the command line prints the message alone."""


class ConfigError(TunewrightError, ValueError):
    """The run's description is not valid."""


class StoreError(TunewrightError):
    """The artifact store cannot be read or written."""


class StoreLocked(StoreError):
    """Another run is writing the same part of the store."""


class DataError(TunewrightError, ValueError):
    """A source, a row or a prepared data set is not usable."""


class ShardCorrupt(DataError):
    """A shard's content does not match its manifest."""


class ModelError(TunewrightError, ValueError):
    """A base model, tokenizer or adapter cannot be used."""


class ClusterError(TunewrightError):
    """The Ray cluster is not reachable or too small for the run."""


class TrainError(TunewrightError):
    """Training cannot go on."""


class NonFiniteLoss(TrainError):
    """Loss or gradient norm was not finite; the optimizer was not stepped."""

    def __init__(self, step: int, what: str):
        super().__init__(
            f"non-finite {what} at step {step}; weights are those of step {step - 1}. "
            f"Lower train.learning_rate or look at the data; the last checkpoint is kept"
        )
        self.step, self.what = step, what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.what)


class CertificateFailed(TrainError):
    """A claim of a run's certificate does not hold for its own model and data."""

    def __init__(self, number: int, name: str, sentence: str):
        super().__init__(f"certificate, {number} ({name}): {sentence}")
        self.number, self.name, self.sentence = number, name, sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.number, self.name, self.sentence)


class ResumeMismatch(TrainError):
    """A checkpoint belongs to other data, another base or another configuration."""


class CheckpointCorrupt(TrainError):
    """A checkpoint's files do not match its manifest."""


class EvaluateError(TunewrightError):
    """An evaluation task cannot be run."""


class RegistryError(TunewrightError, LookupError):
    """A version or alias is not there, or may not be changed."""


class GateRefused(RegistryError):
    """Promotion was refused because a figure is on the wrong side of its gate."""


class ServeError(TunewrightError):
    """An error that a client of the endpoint sees, in OpenAI's shape.

    Args:
        message: one sentence for the client; never echoes a prompt.
        param: the request field at fault, if one is.
        code: OpenAI's machine-readable code, if one applies.
    """

    status = 500
    type = "server_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.param, self.code)

    def body(self) -> dict[str, Any]:
        """OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(ServeError):
    status, type = 400, "invalid_request_error"


class Unauthorized(ServeError):
    status, type = 401, "authentication_error"


class ModelNotFound(ServeError):
    status, type = 404, "invalid_request_error"


class QueueFull(ServeError):
    """Over capacity; the client should wait `retry_after_s` seconds."""

    status, type = 429, "rate_limit_error"
    retry_after_s = 1


class EngineFailed(ServeError):
    status, type = 500, "server_error"


def own_cause(error: BaseException | None) -> TunewrightError | None:
    """The error of ours inside one that another process or Ray wrapped around it, if there is one.

    The innermost counts: Ray's wrapper of a `DataError` is a `DataError` too, with a traceback for
    its message.
    """
    found = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, TunewrightError):
            found = error
        inner = [getattr(error, "cause", None), getattr(error, "_base_exc", None), error.__cause__]
        error = next((e for e in inner if isinstance(e, BaseException)), None)
    return found
