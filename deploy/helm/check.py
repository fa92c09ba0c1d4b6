"""Lints the chart as Helm does, renders it with several sets of values, and checks every object that comes out against
the schemas of Kubernetes, and that what the roles need to be drained and spread is there.

Needs the packages helm-python-sdk, kubernetes-validate and PyYAML. `scripts/test-deploy` calls it.
"""

import pathlib
import sys

import helm_python as helm
import kubernetes_validate
import yaml

CHART = pathlib.Path(__file__).parent / "herald"
KUBERNETES = ["1.29", "1.35"]
ROLES = {"gateway", "control-plane", "orchestrator", "worker", "ledger"}
SCALED = {"enabled": True}
VALUES = {
    "defaults": {},
    "autoscaled": {"roles": {role: {"autoscaling": SCALED} for role in ROLES - {"control-plane"}}},
    "with secrets": {
        "environmentSecret": "herald-environment",
        "filesSecret": "herald-files",
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"team": "messaging"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "serviceAccount": {"annotations": {"a": "b"}},
    },
    "without migration": {"migrate": False},
}


def main():
    faults = [f"lint: {message['path']}: {message['error']}" for message in lint() if message["severity"] >= 2]
    count = 0
    with helm.Chart.load(str(CHART)) as chart:
        for name, values in VALUES.items():
            objects = render(chart, values)
            count += len(objects)
            faults += [f"{name}: {fault}" for thing in objects for fault in invalid(thing)]
            faults += [f"{name}: {fault}" for fault in missing(objects, values)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"chart: {count} objects of {len(VALUES)} sets of values, no findings")


def lint():
    return helm.chart.lint(str(CHART), strict=True)["messages"]


def render(chart, values):
    texts = chart.render(values, name="trial", namespace="messaging")
    documents = (document for path, text in texts.items() if not path.endswith("NOTES.txt") for document in yaml.safe_load_all(text))
    return [document for document in documents if document]


def invalid(thing):
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{thing['kind']} {thing['metadata']['name']} on {version}: {'.'.join(map(str, error.path))}: {error.message}"


def missing(objects, values):
    """What an operator would miss of each role."""
    named = {(thing["kind"], thing["metadata"]["name"]): thing for thing in objects}
    for role in sorted(ROLES):
        name = f"trial-{role}"
        runs = named.get(("Deployment", name)) or named.get(("StatefulSet", name))
        if not runs:
            yield f"{role} does not run"
            continue
        pod = runs["spec"]["template"]["spec"]
        container = pod["containers"][0]
        if role not in container["args"]:
            yield f"{name} is not told its role"
        for part in ["startupProbe", "readinessProbe", "livenessProbe", "lifecycle"]:
            if part not in container:
                yield f"{name} has no {part}"
        if "memory" not in container["resources"]["limits"]:
            yield f"{name} may take all memory"
        if ("PodDisruptionBudget", name) not in named:
            yield f"{name} has no PodDisruptionBudget"
        scaled = values.get("roles", {}).get(role, {}).get("autoscaling", {}).get("enabled", False)
        if scaled != (("HorizontalPodAutoscaler", name) in named):
            yield f"{name}: autoscaling is {scaled}"
        if scaled == ("replicas" in runs["spec"]):
            yield f"{name}: a number of replicas works against the autoscaler, or there is neither"


main()
