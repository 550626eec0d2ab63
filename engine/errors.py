"""Every error that shoal raises on purpose.

    ShoalError
    ├── RequestError          the caller's fault; other requests go on
    │   ├── InvalidRequest    a value out of bounds, a field of the wrong type
    │   ├── ContextTooLong    prompt and output do not fit the model's context
    │   └── UnknownModel      no such model is served
    ├── Overloaded            come again later
    ├── EngineLost            an engine died under its requests
    │   └── WorkerLost        one of its ranks did
    │       └── WorkerStalled it was alive, and came no further
    │           └── WorkerSilent  it was heard no more: stopped, or cut off
    ├── FatalRequest          a request that kills the engines which compute it
    ├── ConfigError           flags, YAML or machine do not allow what was asked
    └── LoadError             a checkpoint cannot be had or read

A message names the value, the bound and the way out. All arguments go to `super().__init__`, so
that an error survives pickling across processes.
"""

from __future__ import annotations


class ShoalError(Exception):
    """The root: catch this to catch whatever shoal raises on purpose."""

    @property
    def message(self) -> str:
        """What a person is told."""
        return str(self.args[0]) if self.args else type(self).__name__

    def __str__(self) -> str:
        return self.message


class RequestError(ShoalError):
    """A request that cannot be served as it is; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param


class InvalidRequest(RequestError):
    """A field's value, type or combination is refused."""


class ContextTooLong(RequestError):
    """Prompt plus requested output exceed the model's context."""


class UnknownModel(RequestError):
    """The model named is not served here."""


class Overloaded(ShoalError):
    """The queue is full; `retry_after_s` is a guess at when it will not be."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class EngineLost(ShoalError):
    """The engine that held a request is gone."""


class WorkerLost(EngineLost):
    """A rank of the engine died or stopped answering."""


class WorkerStalled(WorkerLost):
    """A rank was alive and came no further; perhaps because of what it computed."""


class WorkerSilent(WorkerStalled):
    """A rank was not heard of any more, stopped or cut off; its requests are not to blame."""


class FatalRequest(ShoalError):
    """Engines died of this request, one of them while it computed nothing else."""


class ConfigError(ShoalError):
    """A setting, or settings together, that cannot be kept; `key` names the first of them."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message, key)
        self.key = key


class LoadError(ShoalError):
    """A model or tokenizer that cannot be found, read or understood."""
