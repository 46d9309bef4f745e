"""The sections of `approval` that reach people."""

from __future__ import annotations

import pytest

from aegis_daemon.config.describe import masked
from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.schema import MASK

WHOLE = """
approval:
  callback_base_url: https://aegis.example
  slack: {bot_token: xoxb-hunter2, channel: C0, app_token: xapp-hunter2, signing_secret: hunter2, approvers: {U1: ann}}
  discord: {webhook_url: https://d.example/hunter2}
  teams: {webhook_url: https://t.example/hunter2}
  telegram: {bot_token: "1:hunter2", chat_id: -10042, approvers: {"42": Ann Example}}
  ntfy: {topic_url: https://n.example/hunter2, token: tk_hunter2, reply_topic_url: https://n.example/hunter2r}
  desktop: {enabled: true}
"""


def test_all_channels_can_be_configured_at_once_and_none_shows_a_secret() -> None:
    loaded = loads(WHOLE, "aegis.yaml")
    assert loaded.warnings == ()
    approval = loaded.config.approval
    assert approval.telegram.chat_id == "-10042"
    assert approval.telegram.approvers == {"42": "Ann Example"}
    shown = masked(loaded.config)["approval"]
    assert "hunter2" not in repr(loaded.config) + repr(shown)
    assert shown["ntfy"] == {"topic_url": MASK, "token": MASK, "reply_topic_url": MASK}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("telegram: {bot_token: '1:hunter2'}", "`bot_token` without `chat_id` does nothing"),
        ("telegram: {chat_id: 1}", "`chat_id` without `bot_token` does nothing"),
        ("ntfy: {reply_topic_url: https://n/hunter2}", "`reply_topic_url` without `topic_url` does nothing"),
        ("slack: {app_token: hunter2}", "`app_token` without `bot_token` does nothing"),
        ("slack: {bot_token: hunter2}", "`bot_token` without `channel` does nothing"),
        ("desktop: {buttons: true}", "`buttons` without `enabled` does nothing"),
        ("telegram: {bot_token: a, chat_id: 'a b'}", "not the id of a chat"),
        ("telegram: {bot_token: a, chat_id: 1, approvers: {'4 2': ann}}", "not the id of a chat"),
        ("telegram: {bot_token: a, chat_id: 1, approvers: {'42': ' '}}", "not a person's name"),
        ("telegram: {bot_token: a, chat_id: 1, api_url: hunter2}", "not a url"),
        ("ntfy: {topic_url: 'ftp://n/hunter2'}", "not a url"),
        ("pigeon: {}", "unknown"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_a_fault(text: str, said: str) -> None:
    with pytest.raises(ConfigFaults) as faults:
        loads(f"approval: {{ {text} }}", "aegis.yaml")
    assert said in faults.value.render()
    assert "hunter2" not in faults.value.render()


def test_buttons_on_a_desktop_are_warned_about() -> None:
    loaded = loads("approval: { desktop: { enabled: true, buttons: true } }", "aegis.yaml")
    assert any("can press Approve" in str(warning) for warning in loaded.warnings)
