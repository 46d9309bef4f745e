"""Secrets never print, and nothing changes in a configuration once it is made."""

from __future__ import annotations

import copy
import json
import pickle

import msgspec
import pytest
from pydantic import ValidationError

from aegis_daemon.config.schema import MASK, NOT_YET, Access, Agent, Backend, Config, RateLimit, Secret, reveal


def test_a_secret_shows_a_mask_wherever_text_is_made_of_it() -> None:
    secret = Secret("hunter2")
    shown = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r:>20}",
        "".join(map(str, [secret])),
        str([secret]),
        str({"a": secret}),
    ]
    assert all("hunter2" not in text and MASK in text for text in shown)
    assert secret.reveal() == reveal(secret) == "hunter2"


def test_a_secret_is_not_pickled_or_encoded_and_a_copy_is_itself() -> None:
    secret = Secret("hunter2")
    with pytest.raises(TypeError, match="a secret is not copied"):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises((TypeError, NotImplementedError)):
        msgspec.json.encode(secret)
    assert copy.deepcopy({"a": secret})["a"] is secret


def test_secrets_compare_by_their_text_so_that_a_reload_sees_a_change() -> None:
    assert Secret("a" * 20) == Secret("a" * 20)
    assert Secret("a" * 20) != Secret("b" * 20)
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert Agent(auth_token=Secret("a" * 20)) != Agent(auth_token=Secret("b" * 20))


def test_dumps_and_errors_of_the_models_hold_no_secret() -> None:
    config = Config(agents={"dev": Agent(auth_token=Secret("hunter2-hunter2-hunter2"))})
    for text in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "hunter2" not in text


def test_an_empty_configuration_allows_nothing() -> None:
    config = Config()
    assert (config.agents, config.backends, config.defaults.unlisted, config.mode) == ({}, {}, "deny", "enforce")
    assert not Access().allowed
    assert config.audit.durability == "full"


def test_settings_cannot_be_changed_once_loaded() -> None:
    with pytest.raises(ValidationError):
        Config().mode = "observe"  # type: ignore[misc]


def test_models_are_made_in_code_by_their_own_names() -> None:
    limit = RateLimit(window_s=60, max_count=1)
    access = Access(allowed=True, rate_limits={"publish": limit})
    config = Config(backends={"b": Backend(command="x")}, agents={"a": Agent(backends={"b": access})})
    assert config.agents["a"].backends["b"].rate_limits["publish"].window_s == 60


def test_what_is_refused_is_no_setting_and_what_is_warned_about_is_one() -> None:
    for row in NOT_YET:
        assert row.message == row.message[0].lower() + row.message[1:]
        assert row.hint
        here: object = Config
        for step in row.path:
            if step == "*":
                continue
            fields = getattr(here, "model_fields", {})
            if row.refused and step not in fields:
                here = None
                break
            assert step in fields, row.path
            annotation = str(fields[step].annotation)
            sections = {"backends": Backend, "agents": Agent}
            here = sections.get(step) or fields[step].annotation
            assert annotation
        assert (here is None) == row.refused, row.path
