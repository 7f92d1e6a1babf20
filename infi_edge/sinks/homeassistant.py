"""MQTT discovery for Home Assistant: what it shows of one source, and what it may change."""

from __future__ import annotations

import re
from typing import Any

from infi_edge import __version__
from infi_edge.status import SourceStatus


def discovery(
    prefix: str, topic: str, source: SourceStatus, commands: bool
) -> dict[str, dict[str, Any] | None]:
    """Return the retained configurations of a source's entities by topic; None removes one.

    prefix: Home Assistant's own (`homeassistant`). topic: the sink's. commands: whether the switch
    and the target are there. https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
    """
    node = re.sub(r"[^A-Za-z0-9_-]", "_", f"{topic}_{source.name}")
    base = f"{topic}/{source.name}"
    shared = {
        "state_topic": f"{base}/state",
        "availability_topic": f"{topic}/status",
        "device": {
            "identifiers": [node],
            "name": f"infi-edge {source.name}",
            "manufacturer": "infi-edge",
            "model": source.task or source.modality or "input filter",
            "sw_version": __version__,
        },
    }
    entities: dict[str, tuple[str, dict[str, Any] | None]] = {
        "event": (
            "binary_sensor",
            {"name": "Event", "value_template": "{{ 'ON' if value_json.active else 'OFF' }}"},
        ),
        "value": (
            "sensor",  # whose state has at most 255 characters
            {"name": "Value", "value_template": "{{ (value_json.value | string)[:255] }}"},
        ),
        "filtering_rate": (
            "sensor",
            {
                "name": "Filtering rate",
                "unit_of_measurement": "%",
                "state_class": "measurement",
                "value_template": "{{ (100 * value_json.filtering_rate) | round(1) "
                "if value_json.filtering_rate is number else None }}",
            },
        ),
        "enabled": ("switch", _switch(base) if commands else None),
        "target": ("number", _number(base, source) if commands else None),
    }
    found: dict[str, dict[str, Any] | None] = {}
    for name, (component, own) in entities.items():
        entity = None if own is None else {"unique_id": f"{node}_{name}", **own, **shared}
        found[f"{prefix}/{component}/{node}/{name}/config"] = entity
    return found


def _switch(base: str) -> dict[str, Any]:
    return {
        "name": "Filtering",
        "command_topic": f"{base}/enabled/set",
        "value_template": "{{ 'ON' if value_json.enabled else 'OFF' }}",
        "entity_category": "config",
    }


def _number(base: str, source: SourceStatus) -> dict[str, Any] | None:
    """The target can be set to a row of the bundle's table of the measure in force."""
    if not source.points:
        return None
    measure = source.points[source.chosen].measure
    targets = [point.target for point in source.points if point.measure == measure]
    return {
        "name": f"Target {measure}",
        "command_topic": f"{base}/target/set",
        "value_template": "{{ value_json.target }}",
        "min": min(targets),
        "max": max(targets),
        "step": 0.001,
        "mode": "box",
        "entity_category": "config",
    }
