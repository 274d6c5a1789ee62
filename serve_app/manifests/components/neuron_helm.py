"""`components/neuron-helm`: device plugin and scheduler extension, as values of AWS's chart."""

from __future__ import annotations

from serve_app.manifests.tree import File, Object

CHART = "1.10.0"
"""Of 2026-08-19, with the images 2.32.0.0 (aws-neuron/neuron-helm-charts, releases)."""

_ABOUT = f"""\
Values for AWS's Neuron chart: what makes aws.amazon.com/neuron a resource of the nodes.
  helm upgrade --install neuron-helm-chart \\
    oci://public.ecr.aws/neuron/neuron-helm-chart --version {CHART} \\
    --namespace kube-system --values kuberay/components/neuron-helm/values.yaml
scheduler: pods that take more than one but not all devices of an instance need adjacent
  ones and name my-scheduler as their schedulerName. EKS's own scheduler cannot be extended,
  hence not defaultScheduler (aws-neuron-sdk, deploy/includes/k8s-multiple-scheduler.rst).
  The chart brings kube-scheduler 1.31; for a newer cluster set
  scheduler.customScheduler.image.tag to one of its own minor version.
npd: the problem detector; it needs an IAM role for CloudWatch, so it is off. To turn it on:
  aws-neuron-sdk, deploy/infrastructure/problem-detector.rst.
draDriver: excludes the device plugin, on which these manifests count.
"""


def files() -> tuple[File, ...]:
    values: Object = {
        "devicePlugin": {"enabled": True},
        "scheduler": {
            "enabled": True,
            "customScheduler": {"enabled": True, "fullnameOverride": "my-scheduler"},
            "defaultScheduler": {"enabled": False},
        },
        "npd": {"enabled": False},
        "draDriver": {"enabled": False},
    }
    return (
        File(
            "components/neuron-helm/values.yaml",
            (values,),
            _ABOUT,
        ),
    )
