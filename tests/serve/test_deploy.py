"""The docker-compose example: its files fit together, and its dashboard asks for metrics that are there."""

import json
import re
from typing import Any

import yaml

from app.serve.settings import read_settings
from serve.conftest import Served
from support.serving import ROOT

DEPLOY = ROOT / "scripts" / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_settings_of_the_example_are_settings() -> None:
    environment = read("docker-compose.yml")["services"]["app"]["environment"]
    filled = {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for name, value in environment.items()}
    settings = read_settings(filled, {})
    assert settings.api_keys_file == "/run/secrets/api_keys" and settings.grace == 30


def test_nothing_but_loopback_is_published_and_files_are_there() -> None:
    compose = read("docker-compose.yml")
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists()
    grace = float(compose["services"]["app"]["environment"]["APP_GRACE"])
    assert float(compose["services"]["app"]["stop_grace_period"].removesuffix("s")) > grace + 10


def test_prometheus_and_grafana_look_where_the_services_are() -> None:
    services = read("docker-compose.yml")["services"]
    (job,) = read("prometheus.yml")["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert host in services and services[host]["ports"][0].endswith(f":{port}")
    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services


def test_the_dashboard_asks_for_metrics_that_are_there(served: Served) -> None:
    served.client.post("/generate", json={"prompt": "Hi", "max_tokens": 3})
    served.client.post("/generate", json={"prompt": 5})
    there = set(re.findall(r"^(app_\w+)", served.client.get("/metrics").text, flags=re.MULTILINE))
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "app.json").read_text(encoding="utf-8"))
    asked = {
        name for panel in dashboard["panels"] for t in panel["targets"] for name in re.findall(r"app_\w+", t["expr"])
    }
    assert asked <= there and len(asked) >= 10
    assert all(panel["datasource"]["uid"] == "prometheus" for panel in dashboard["panels"])


def test_the_readme_lists_every_metric(served: Served) -> None:
    text = (ROOT / "src" / "app" / "serve" / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^# TYPE (app_\w+)", served.client.get("/metrics").text, flags=re.MULTILINE))
    assert names and all(f"`{name}" in text or f"{name}{{" in text for name in names)
