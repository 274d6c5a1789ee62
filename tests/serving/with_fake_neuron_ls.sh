#!/usr/bin/env bash
# Runs a command where Ray finds a neuron-ls: a FAKE, which tells of an inf2.48xlarge's 12 devices
# of two cores. To be run in a mount namespace of its own (unshare --mount).
set -euo pipefail
mount -t tmpfs fake /opt
mkdir -p /opt/aws/neuron/bin
cat > /opt/aws/neuron/bin/neuron-ls <<'FAKE'
#!/bin/sh
printf '['
for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
  [ $i = 0 ] || printf ','
  printf '{"neuron_device": %d, "bdf": "00:1%x.0", "nc_count": 2, "memory_size": 34359738368}' $i $i
done
printf ']\n'
FAKE
chmod +x /opt/aws/neuron/bin/neuron-ls
exec "$@"
