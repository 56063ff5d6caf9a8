"""Settings: every wrong value by its name, all at once; and the table that documents them."""

import dataclasses

import pytest

from app.errors import ConfigError
from app.serve.settings import Settings, read_settings, settings_table
from support.serving import ROOT

README = ROOT / "src" / "app" / "serve" / "README.md"


def test_the_table_is_the_code() -> None:
    assert settings_table() in README.read_text(encoding="utf-8")


def test_text_of_the_environment_becomes_values() -> None:
    settings = read_settings(
        {
            "APP_RUN": "runs/a, NAME=runs/b",
            "APP_SLOTS": "3",
            "APP_TIMEOUT": "2.5",
            "APP_LOG_PROMPTS": "True",
            "APP_CONTEXT": "",  # a compose file that passes an unset variable on
            "APP_CACHE": "/somewhere",  # another part's
            "HOME": "/root",
        },
        {},
    )
    assert settings == Settings(run=("runs/a", "NAME=runs/b"), slots=3, timeout=2.5, log_prompts=True)


def test_arguments_are_text_or_what_yaml_makes_of_it() -> None:
    text = read_settings({}, {"slots": "3", "speculate": "false", "run": "a,b", "timeout": "2", "cache_bits": "8"})
    yaml = read_settings({}, {"slots": 3, "speculate": False, "run": ["a", "b"], "timeout": 2, "cache_bits": 8})
    assert text == yaml == Settings(slots=3, speculate=False, run=("a", "b"), timeout=2.0, cache_bits=8)


def test_the_environment_wins() -> None:
    assert read_settings({"APP_SLOTS": "2"}, {"slots": "9", "queue": "1"}) == Settings(slots=2, queue=1)


def test_all_faults_at_once_by_name() -> None:
    with pytest.raises(ConfigError) as fault:
        read_settings(
            {
                "APP_SLOTS": "eight",
                "APP_TIMEOUT": "nan",
                "APP_ENGINE": "vlm",
                "APP_CACHE_BITS": "4",
                "APP_SLOT": "4",
                "APP_LOG_PROMPTS": "1",
            },
            {"quue": "3", "queue": "-1", "api_keys": "secret-1"},
        )
    text = str(fault.value)
    for said in (
        "APP_SLOTS is 'eight'; it must be a whole number from 1 to 1,024",
        "APP_TIMEOUT is 'nan'; it must be a number from 0.1",
        "APP_ENGINE is 'vlm'; it must be one of local, vllm",
        "APP_CACHE_BITS is '4'; it must be one of 16, 8",
        "APP_SLOT is not known; did you mean APP_SLOTS?",
        "APP_LOG_PROMPTS is '1'; it must be true, false",
        "--arg quue is no option; did you mean queue?",
        "--arg queue is '-1'; it must be a whole number from 0",
        "set APP_API_KEYS instead",
    ):
        assert said in text
    assert "secret-1" not in text


def test_every_option_is_read_from_its_variable() -> None:
    wrong = {f"APP_{field.name.upper()}": "\0" for field in dataclasses.fields(Settings)}
    with pytest.raises(ConfigError) as fault:
        read_settings(wrong, {})
    free = {"APP_RUN", "APP_MODEL", "APP_API_KEYS", "APP_CORS_ORIGINS"}  # lists of texts take anything
    free |= {"APP_BASE", "APP_FAMILY", "APP_BASE_NAME", "APP_API_KEYS_FILE", "APP_VLLM_ARGS", "APP_VLLM_URL"}
    assert all((name in str(fault.value)) != (name in free | {"APP_VLLM_PYTHON"}) for name in wrong)


@pytest.mark.parametrize("file", ["local.yaml", "vllm.yaml"])
def test_the_example_files_are_right(file: str) -> None:
    import yaml

    settings = read_settings({}, yaml.safe_load((ROOT / "configs" / "serve" / file).read_text(encoding="utf-8")))
    assert settings.run == ("runs/mistral",)
