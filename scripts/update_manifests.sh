#!/usr/bin/env bash
# Write kuberay/'s base, components and an overlay for each file of configs/ anew.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf kuberay/base kuberay/storage kuberay/components kuberay/overlays
for config in configs/*.yaml; do
  neuron-serve render "$config" --out kuberay 2>&1 >/dev/null | grep -E 'error|cannot' && exit 1
done
echo "$(find kuberay/overlays -name rayservice.yaml | wc -l) overlays in kuberay/overlays"
