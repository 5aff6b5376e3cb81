#!/usr/bin/python3
"""Reads a text of metrics with the parsers of prometheus_client: as OpenMetrics,
or in the older format of Prometheus.

    metrics.py openmetrics|prometheus FILE

Prints the families as JSON; exits with 1 when the text is not valid, with 77
when prometheus_client is not there."""
import json
import sys

try:
    from prometheus_client.openmetrics import parser as openmetrics
    from prometheus_client import parser as prometheus
except ImportError:
    sys.exit(77)

parser = {"openmetrics": openmetrics, "prometheus": prometheus}[sys.argv[1]]
with open(sys.argv[2], encoding="utf-8", newline="") as file:
    text = file.read()
try:
    families = list(parser.text_string_to_metric_families(text))
except ValueError as error:
    print(error)
    sys.exit(1)
seen = set()
for family in families:
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        if key in seen:
            print("twice: %s" % (key,))
            sys.exit(1)
        seen.add(key)
print(json.dumps({f.name: {
    "type": f.type, "unit": f.unit, "help": f.documentation, "samples": [
        {"name": s.name, "labels": s.labels or {"none": "none"},
         "value": float(s.value)} for s in f.samples]} for f in families}))
