#!/usr/bin/env bash
# One jvidprune command on every host of a TPU slice, which is created if it is not there:
#   NAME=prune ZONE=us-east5-b TYPE=v6e-16 VERSION=v2-alpha-tpuv6e NFS=10.0.0.2:/share \
#       experiments/launch/tpu_pod.sh sweep --model /mnt/shared/model --mesh auto --out /mnt/shared/run
# NFS is a share (e.g. of Filestore) in the slice's network that all hosts mount as /mnt/shared. The slice stays, and
# costs, until: gcloud compute tpus tpu-vm delete NAME --zone ZONE
set -euo pipefail

usage="NAME, ZONE, TYPE, VERSION and NFS must be set; see the head of $0"
: "${NAME:?$usage}" "${ZONE:?$usage}" "${TYPE:?$usage}" "${VERSION:?$usage}" "${NFS:?$usage}"
TRIES="${TRIES:-3}" PAUSE="${PAUSE:-10}"
root="$(cd "$(dirname "$0")/../.." && pwd)"

slice() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone "$ZONE" "${@:2}"; }
everywhere() { slice ssh --worker all --command "$1"; }

if ! slice describe >/dev/null 2>&1; then
    slice create --accelerator-type "$TYPE" --version "$VERSION"
fi

wheels="$(mktemp -d)"
trap 'rm -rf "$wheels"' EXIT
python3 -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$root"
gcloud compute tpus tpu-vm scp "$wheels"/jvidprune-*.whl "$NAME:" --zone "$ZONE" --worker all

# The images come with a Python that is too old for JAX.
everywhere "set -e
sudo mkdir -p /mnt/shared
mountpoint -q /mnt/shared || { sudo apt-get -qq install -y nfs-common; sudo mount -t nfs '$NFS' /mnt/shared; }
python3 -m pip install --quiet --user uv
test -d env || ~/.local/bin/uv venv --quiet --python 3.12 env
~/.local/bin/uv pip install --quiet --python env/bin/python \"\$(ls jvidprune-*.whl)[tpu]\""

# Hosts find each other; one that dies ends the others, and all go on together from what is on the disk. Code 2 is a
# mistake in the command; anything else may pass, as code 75 does: a host's place in the folder is still taken, or the
# hosts could not join.
printf -v words '%q ' "$@"
for ((try = 1; ; try++)); do
    code=0
    everywhere "env/bin/jvidprune $words" || code=$?
    if ((code == 0 || code == 2 || try >= TRIES)); then exit "$code"; fi
    echo "the slice ended with code $code; starting again" >&2
    sleep "$PAUSE"
done
