import pytest
from pydantic import ValidationError

from ktrdr_operator.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_TRAINER_IMAGE", "trainer:1")


def test_settings_from_little_environment_have_defaults() -> None:
    settings = Settings()
    assert settings.trainer_image == "trainer:1"
    assert settings.namespaces() == (None,)
    assert (settings.workers, settings.resync_seconds, settings.http_port) == (24, 300, 8080)


def test_settings_namespaces_are_a_comma_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_WATCH_NAMESPACES", "a, b,")
    assert Settings().namespaces() == ("a", "b")


def test_settings_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_WATCH_NAMESPACES", "")
    monkeypatch.setenv("KTRDR_WORKERS", "")
    assert Settings() == Settings(trainer_image="trainer:1")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TRAINER_IMAGE", "", "Field required"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("LOG_FORMAT", "xml", "'json' or 'text'"),
        ("LEADER_ELECTION", "true", "needs KTRDR_LEASE_NAMESPACE"),
    ],
)
def test_settings_bad_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"KTRDR_{name}", value)
    with pytest.raises(ValidationError, match=message):
        Settings()


def test_settings_every_field_says_what_it_does() -> None:
    assert all(field.description for field in Settings.model_fields.values())
