#!/usr/bin/env bash
# tpu/run.sh ARGUMENTS...: python -m vargrl.main ARGUMENTS... of HEAD on every worker, in the background.
# Changes that are not committed and new Python files are refused, and so is a second run beside a living
# one; other files that Git does not know stay behind. Each log is in bucket/logs/NAME/ too, a minute late.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
[ $# -gt 0 ] || die "no arguments found, those of python -m vargrl.main expected:" \
  "tpu/run.sh train --config experiments/X.py --workdir DIR"

# shellcheck disable=SC2329  # On the workers.
obstacles() {  # CKSUM BUCKET: a line for each thing in the way of a run; the bucket is mounted.
  set -euo pipefail
  ! alive || echo "$(hostname): a run is alive, pid $(cat ~/vargrl/pid): tpu/stop.sh"
  [ "$(cksum 2> /dev/null < ~/vargrl/env/setup.py)" = "$1" ] \
    || echo "$(hostname): not set up for the setup.py of HEAD: tpu/setup.sh"
  [ -n "$2" ] || return 0
  mkdir -p ~/vargrl/tree/bucket
  cd ~/vargrl
  # No cache of names: a worker sees at once the checkpoint that another one has renamed.
  mountpoint -q tree/bucket || gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 \
    "${2#gs://}" tree/bucket > mount.log 2>&1 || echo "$(hostname): $2 cannot be mounted: $(tail -n 1 mount.log)"
}

# shellcheck disable=SC2329
mirror() {  # COPY: of the log, every minute, as a file that is open on a bucket is not yet there.
  local tick=0
  while alive; do
    ((tick++ % 60)) || cp ../log "$1" || true
    sleep 1
  done
  cp ../log "$1"
}

# shellcheck disable=SC2329
start() {  # COMMIT LOGS ARGUMENTS...
  set -euo pipefail
  local commit=$1 logs=$2
  shift 2
  unpack
  echo "== $(date -u +%FT%TZ) $commit: python -m vargrl.main $(printf '%q ' "$@")" >> ../log
  # Without JAX_PLATFORMS a TPU that cannot be reached is replaced by the CPU, silently.
  JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1 nohup setsid ../env/bin/python -m vargrl.main "$@" \
    < /dev/null >> ../log 2>&1 &
  echo $! > ../pid
  if [ -n "$logs" ]; then
    mkdir -p "$logs"
    (trap '' HUP; mirror "$logs/$(hostname).log") < /dev/null > /dev/null 2>&1 &
  fi
  echo "$(hostname): pid $(cat ../pid)"
}

usable tpu/run.sh "$@"
git rev-parse --verify --quiet HEAD > /dev/null || die 'no commit found, a Git checkout of vargrl with one expected'
found=$(on_workers obstacles "$(git show HEAD:setup.py | cksum)" "$BUCKET")
[ -z "$found" ] || die "nothing was started:"$'\n'"$found"
copy
on_workers start "$(git rev-parse --short HEAD)" "${BUCKET:+bucket/logs/$NAME}" "$@"
echo "$NAME: running. Follow: tpu/logs.sh${BUCKET:+, or $BUCKET/logs/$NAME/}. Stop: tpu/stop.sh"
