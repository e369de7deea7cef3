#!/usr/bin/env bash
# tpu/create.sh [--wait=SECONDS]: creates the TPU of pod.env and returns when it can be used.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
limit=86400
for argument; do
  [[ $argument =~ ^--wait=([0-9]+)$ ]] || die "argument '$argument' found, --wait=SECONDS expected"
  limit=${BASH_REMATCH[1]}
done

create() {
  set -- --accelerator-type="$ACCELERATOR"
  if [ "$QUEUED" = no ]; then set -- "$@" --version="$RUNTIME"
  elif [ "$SLICES" = 1 ]; then set -- "$@" --runtime-version="$RUNTIME" --node-id="$NAME"
  else set -- "$@" --runtime-version="$RUNTIME" --node-count="$SLICES" --node-prefix="$NAME"; fi
  [ "$SPOT" = no ] || set -- "$@" --spot
  tpu create "$NAME" "$@"
}

created=
found=$(state)
[ "$found" = ABSENT ] || echo "$NAME: exists already, $found"
until [ "$found" = READY ] || [ "$found" = ACTIVE ]; do
  case $found in
    PREEMPTED | SUSPENDING | SUSPENDED | TERMINATED | FAILED)
      die "$NAME: $found, delete it first: tpu/delete.sh --yes && tpu/create.sh";;
    STOPPED) die "$NAME: $found, start it: gcloud compute tpus tpu-vm start $NAME --project=$PROJECT --zone=$ZONE";;
  esac
  if [ "$found" = ABSENT ] && [ -z "$created" ]; then  # Or what was there is deleted by now.
    create
    created=$SECONDS
    found=$(state)
    continue
  fi
  [ "$found" != ABSENT ] || [ $((SECONDS - created)) -lt 600 ] \
    || die "$NAME: $found $((SECONDS - created)) s after it was created: see gcloud compute tpus queued-resources list"
  [ "$SECONDS" -lt "$limit" ] || die "$NAME: $found after $SECONDS s, it stays as it is; wait on: tpu/create.sh"
  echo "$NAME: $found, $SECONDS s"
  sleep "${POLL:-15}"
  found=$(state)
done
echo "$NAME: $found. Next: tpu/setup.sh"
