#!/usr/bin/env bash
# tpu/stop.sh [--kill] [--wait=SECONDS]: SIGTERM to the run, so that it saves, or SIGKILL; waits for its end.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
signal=TERM limit=120
for argument; do
  case $argument in
    --kill) signal=KILL;;
    --wait=*[!0-9]* | --wait=) die "argument '$argument' found, --wait=SECONDS expected";;
    --wait=*) limit=${argument#--wait=};;
    *) die "argument '$argument' found, --kill or --wait=SECONDS expected";;
  esac
done

# shellcheck disable=SC2329  # On the workers.
halt() {  # SIGNAL SECONDS
  local pid tick
  alive || { echo "$(hostname): no run"; return; }
  pid=$(cat ~/vargrl/pid)
  # SIGTERM is for the run, which ends its reward workers itself; SIGKILL is for all of its group.
  if [ "$1" = TERM ]; then kill -TERM "$pid"; else kill -KILL -- "-$pid"; fi
  for ((tick = 0; tick <= 5 * $2; tick++)); do
    sleep 0.2
    alive || { echo "$(hostname): pid $pid has ended"; return; }
  done
  echo "$(hostname): pid $pid is still alive"
}

usable tpu/run.sh ARGUMENTS
found=$(on_workers halt "$signal" "$limit")
echo "$found"
[[ $found != *'still alive'* ]] || die "$NAME: not ended after $limit s; wait on: tpu/stop.sh, or: tpu/stop.sh --kill"
