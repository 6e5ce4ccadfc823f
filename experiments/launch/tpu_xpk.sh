#!/usr/bin/env bash
# One jvidprune command as an xpk workload on a GKE cluster of TPU slices:
#   CLUSTER=tpus WORKLOAD=prune TYPE=v6e-16 IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/jvidprune \
#       experiments/launch/tpu_xpk.sh sweep --model /mnt/shared/model --mesh auto --out /mnt/shared/run
# IMAGE has jvidprune[tpu] in it; /mnt/shared is a storage of the cluster (xpk storage attach ... --mount-point
# /mnt/shared --auto-mount true). The workload is started again as a whole when a host dies.
set -euo pipefail

usage="CLUSTER, WORKLOAD, TYPE and IMAGE must be set; see the head of $0"
: "${CLUSTER:?$usage}" "${WORKLOAD:?$usage}" "${TYPE:?$usage}" "${IMAGE:?$usage}"

printf -v words '%q ' "$@"
exec xpk workload create \
    --cluster "$CLUSTER" \
    --workload "$WORKLOAD" \
    --tpu-type "$TYPE" \
    --num-slices "${SLICES:-1}" \
    --docker-image "$IMAGE" \
    --max-restarts "${RESTARTS:-10}" \
    --command "jvidprune $words"
