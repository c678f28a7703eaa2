"""A Hub that cannot be reached is said once, and nobody waits for it."""

import socket

import pytest
from huggingface_hub import constants

from dsocr.common import hub
from dsocr.models.loading import ModelLoadError, load_raw_config


@pytest.fixture
def online(monkeypatch):
    """As on a machine that believes in its network; what a test changes is put back."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    hub.check_hub.cache_clear()
    yield
    hub.check_hub.cache_clear()


def test_a_machine_without_a_network_is_told_once_in_one_line(online, monkeypatch, caplog):
    tried = []

    def refuse(address, timeout):
        tried.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="neither a local folder nor a model id that can be reached"):
            load_raw_config("nobody/nothing")
    assert len(tried) == 1 and constants.HF_HUB_OFFLINE
    said = [record for record in caplog.records if "cannot be reached" in record.message]
    assert len(said) == 1 and "Retrying" not in caplog.text


def test_a_hub_that_answers_is_asked(online, monkeypatch):
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert hub.check_hub() and not constants.HF_HUB_OFFLINE
    server.close()


def test_behind_a_proxy_the_hubs_own_address_says_nothing(online, monkeypatch):
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    monkeypatch.setattr(hub.socket, "create_connection", None)
    assert hub.check_hub()
