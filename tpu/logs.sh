#!/usr/bin/env bash
# [WORKER=n] [SLICE=n] tpu/logs.sh: follows the log of one worker, the first if nothing else is said.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
[ $# = 0 ] || die "argument '$1' found, none expected"
WORKER=${WORKER:-0} SLICE=${SLICE:-0}
[[ $WORKER =~ ^[0-9]+$ ]] || die "WORKER='$WORKER' found, the number of a worker expected"
[[ $SLICE =~ ^[0-9]+$ ]] && [ "$SLICE" -lt "$SLICES" ] \
  || die "SLICE='$SLICE' found, a number less than SLICES='$SLICES' expected"

usable tpu/run.sh ARGUMENTS
worker "$WORKER" "$SLICE" 'tail -n 100 -F vargrl/log'
