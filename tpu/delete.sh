#!/usr/bin/env bash
# tpu/delete.sh [--yes]: deletes the TPU of pod.env with its disk; what is in the bucket stays.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
[ $# = 0 ] || [ "$*" = --yes ] || die "argument '$*' found, --yes expected"

found=$(state)
if [ "$found" = ABSENT ]; then
  echo "$NAME: no such TPU in $ZONE, nothing to delete"
  exit
fi
if [ $# = 0 ]; then
  echo "Delete $NAME ($ACCELERATOR x $SLICES, $found) in $ZONE of $PROJECT, and all that is on its disk? yes or no"
  read -r answer || true
  [ "${answer-}" = yes ] || die "'${answer-}' found, yes expected; nothing was deleted"
fi
set -- --quiet
[ "$QUEUED" = no ] || set -- --quiet --force  # Its nodes go with a queued resource.
tpu delete "$NAME" "$@"
echo "$NAME: deleted"
