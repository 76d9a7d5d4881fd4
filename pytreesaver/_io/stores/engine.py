"""The stores of obstore, by URL, and its errors as OSErrors.

obstore is the Python package of Rust's object_store. It is an optional dependency, imported when a URL is met.
"""

import errno
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from pytreesaver._errors import CheckpointError, not_installed
from pytreesaver._io.stores.paths import READ_ONLY_SCHEMES, StorePath, store_path

T = TypeVar("T")
_guard = threading.Lock()
_stores: dict[str, Any] = {}
_options: dict[str, dict[str, Any]] = {}

_RETRIES = {"max_retries": 1000, "retry_timeout": timedelta(seconds=180)}
_CLIENT = {"timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}


def set_store_options(url: str, **options: Any) -> None:
    """Set options of an object store, for all paths that begin with a URL. They come before the environment.

    Without options, a store is configured by the environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_REGION``, ``AWS_ENDPOINT_URL`` and their kin, ``GOOGLE_APPLICATION_CREDENTIALS``,
    ``AZURE_STORAGE_ACCOUNT_NAME``, or the identity of the machine.

    Args:
        url: the beginning of the paths, such as ``"s3://bucket"``.
        options: options of the store of obstore: ``endpoint=``, ``region=``, ``access_key_id=``,
            ``secret_access_key=``, ``skip_signature=`` and others for S3; ``client_options=`` and ``retry_config=``
            for all stores.

    Raises:
        TypeError, ValueError: if `url` is not the URL of an object store.

    Example:
        >>> set_store_options("s3://checkpoints", endpoint="https://minio.example.org", region="us-east-1")
    """
    path = store_path(url)
    with _guard:
        _options[path.root_url] = dict(options)
        _stores.pop(path.root_url, None)


def options_of(path: StorePath) -> Mapping[str, Any]:
    """Return the options that were set for the store of a path, and the endpoint that the environment names."""
    options = dict(_options.get(path.root_url, {}))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if path.scheme in ("s3", "s3a") and endpoint:
        options.setdefault("endpoint", endpoint)
    return options


def obstore() -> Any:
    """Return the package.

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        import obstore
    except ImportError:
        raise not_installed("path", "obstore", "the URL of an object store", extra="remote") from None
    return obstore


def store_of(path: StorePath) -> Any:
    """Return the store of a path. All paths of a bucket share one."""
    root = path.root_url
    if _is_fork and path.scheme != "memory":
        raise CheckpointError(
            f"{root}: this process is a fork of one that has used object stores, whose connections it cannot use; "
            'start processes with the method "spawn" or "forkserver"'
        )
    with _guard:
        if root not in _stores:
            try:
                _stores[root] = _new_store(path)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{root}: {redacted(str(error))}") from None
            except (obstore().exceptions.UnknownConfigurationKeyError, obstore().exceptions.GenericError) as error:
                raise ValueError(f"{root}: a wrong option or variable: {redacted(str(error))}") from None
        return _stores[root]


_is_fork = False


def _note_fork() -> None:
    global _guard, _is_fork  # noqa: PLW0603
    _guard = threading.Lock()
    _is_fork = _is_fork or bool(_stores)


os.register_at_fork(after_in_child=_note_fork)


def _new_store(path: StorePath) -> Any:
    obstore()
    from obstore import store

    given = dict(options_of(path))
    common: dict[str, Any] = {
        "client_options": {**_CLIENT, **given.pop("client_options", {})},
        "retry_config": {**_RETRIES, **given.pop("retry_config", {})},
    }
    if path.scheme == "memory":
        return store.MemoryStore()
    if path.scheme in READ_ONLY_SCHEMES:
        common["client_options"].setdefault("allow_http", path.scheme == "http")
        return store.HTTPStore.from_url(path.root_url, **common)
    if path.scheme in ("gs", "gcs"):
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator and not given:
            url = emulator if "://" in emulator else f"http://{emulator}"
            key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": ""}
            given["service_account_key"] = json.dumps({**key, "private_key_id": ""})
            common["client_options"].setdefault("allow_http", True)
        return store.GCSStore.from_url(f"gs://{path.root_url.partition('://')[2]}", **given, **common)
    if path.scheme in ("s3", "s3a"):
        if endpoint := given.get("endpoint"):
            common["client_options"].setdefault("allow_http", endpoint.startswith("http://"))
        return store.S3Store.from_url(f"s3://{path.root_url.partition('://')[2]}", **given, **common)
    return store.AzureStore.from_url(path.root_url, **given, **common)


class ChangedError(OSError):
    """An object exists already, or is not the expected version, so that a conditional write was refused."""


def call(path: StorePath, action: Callable[[Any, str], T]) -> T:
    """Call `action` with the store and the name of the object.

    Raises:
        ChangedError: if a condition of a write does not hold.
        FileNotFoundError, PermissionError, OSError: if the store could not do it, without credentials in the message.
    """
    errors = obstore().exceptions
    # The causes are left out: the texts of the engine contain requests, which may contain credentials.
    try:
        return _interruptible(partial(action, store_of(path), path.key))
    except (errors.NotFoundError, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path)) from None
    except (errors.AlreadyExistsError, errors.PreconditionError):
        raise ChangedError(errno.EEXIST, "The object has been written by another process", str(path)) from None
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, redacted(str(error)), str(path)) from None
    except errors.NotSupportedError as error:
        raise OSError(errno.EOPNOTSUPP, redacted(str(error)), str(path)) from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of the engine, for an endpoint that is no URL, for example
            message = f"{path}: wrong options or variables of the store: {redacted(str(error))}"
            raise ValueError(message) from None
        if not isinstance(error, errors.BaseError):
            raise
        if _DENIED.search(str(error)):  # of a request to list, which the engine does not tell apart
            raise PermissionError(errno.EACCES, redacted(str(error)), str(path)) from None
        raise OSError(errno.EIO, redacted(str(error)), str(path)) from None


_DENIED = re.compile(r"status code: 40[13]\b")


def _interruptible(action: Callable[[], T]) -> T:
    """Call `action`. In the main thread, an interrupt by the user ends the wait, which the engine would not notice."""
    if threading.current_thread() is not threading.main_thread():
        return action()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="pytreesaver-store", daemon=True).start()
    return future.result()


_NAMED_SECRET = re.compile(
    r"(authorization|signature|secret|token|credential|password|(?:access|account|secret|api)[ _-]?key)"
    r"([\"']?\s*[:=]\s*)((bearer|basic)\s+)?\S+",
    re.IGNORECASE,
)
_SECRETS = re.compile(r"(AWS|AZURE|GOOGLE|GCP|GCS)_.*(SECRET|KEY|TOKEN|PASSWORD|CREDENTIAL|SIGNATURE|SAS).*")


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the first line of a message without credentials.

    Example:
        >>> redacted("refused https://me:word@host/x?X-Amz-Signature=abc\\nDebug: Authorization: AWS4 ...")
        'refused https://host/x?...'
    """
    line = text.partition("\n")[0]
    line = re.sub(r"://[^/@\s]*@", "://", line)
    line = re.sub(r"(https?://[^\s?\"'<>]*)\?[^\s\"')>]+", r"\1?...", line)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = re.sub(r":?\s*<.*", f": {code[1]}" if code else "", line)
    line = _NAMED_SECRET.sub(r"\1\2...", line)
    known = [value for name, value in environment.items() if _SECRETS.fullmatch(name)]
    known += [secret for options in _options.values() for secret in _secrets_in(options)]
    for secret in known:
        if len(secret) > _MIN_SECRET_LENGTH:
            line = line.replace(secret, "...")
    return line


_MIN_SECRET_LENGTH = 3


def _secrets_in(options: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += _secrets_in(value)
        elif _is_secret(str(name)):
            found.append(str(value))
    return found


def _is_secret(name: str) -> bool:
    return any(part in name.lower() for part in ("key", "token", "secret", "password", "credential", "authorization"))
