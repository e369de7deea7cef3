#!/usr/bin/env bash
# tpu/create.sh [--wait=SECONDS]: creates the TPU of pod.env and returns when it can be used.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
limit=86400
for argument; do
  [[ $argument =~ ^--wait=([0-9]+)$ ]] || die "argument '$argument' found, --wait=SECONDS expected"
  limit=${BASH_REMATCH[1]}
done

found=$(state)
if [ "$found" = ABSENT ]; then
  set -- --accelerator-type="$ACCELERATOR"
  if [ "$QUEUED" = no ]; then set -- "$@" --version="$RUNTIME"
  elif [ "$SLICES" = 1 ]; then set -- "$@" --runtime-version="$RUNTIME" --node-id="$NAME"
  else set -- "$@" --runtime-version="$RUNTIME" --node-count="$SLICES" --node-prefix="$NAME"; fi
  [ "$SPOT" = no ] || set -- "$@" --spot
  tpu create "$NAME" "$@"
  found=$(state)
else
  echo "$NAME: exists already, $found"
fi

until [ "$found" = READY ] || [ "$found" = ACTIVE ]; do
  case $found in
    PREEMPTED | SUSPENDING | SUSPENDED | TERMINATED | STOPPED | FAILED)
      die "$NAME: $found, delete it first: tpu/delete.sh --yes && tpu/create.sh";;
  esac
  [ "$SECONDS" -lt "$limit" ] || die "$NAME: $found after $SECONDS s, it stays as it is; wait on: tpu/create.sh"
  echo "$NAME: $found, $SECONDS s"
  sleep "${POLL:-15}"
  found=$(state)
done
echo "$NAME: $found. Next: tpu/setup.sh"
