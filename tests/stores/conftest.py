"""Object stores on loopback."""

import uuid

import pytest
from stores.server import StoreServer

import pytreesaver as pts
from benchmarks.stores import moto_server

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="session")
def moto():
    """The URL of moto's S3 server, which has a bucket called "bucket"."""
    with moto_server() as url:
        yield url


@pytest.fixture
def server():
    """A server of the tests, on which faults can be made."""
    server = StoreServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(monkeypatch):
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


FAST = {"client_options": {"timeout": "5s"}, "retry_config": {"max_retries": 4}}


@pytest.fixture(params=["memory", "moto", "s3", "gs"])
def root(request, environment, monkeypatch):
    """The URL of an empty place in an object store, of each kind."""
    place = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{place}/runs"
    if request.param == "moto":
        pts.set_store_options("s3://bucket", endpoint=request.getfixturevalue("moto"))
        return f"s3://bucket/{place}"
    server = request.getfixturevalue("server")
    if request.param == "s3":
        pts.set_store_options("s3://other", endpoint=server.url, **FAST)
        return f"s3://other/{place}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    pts.set_store_options("gs://bucket")
    return f"gs://bucket/{place}"


@pytest.fixture
def store(server, environment):
    """The server as s3://faulty."""
    pts.set_store_options("s3://faulty", endpoint=server.url, **FAST)
    return server
