# shellcheck shell=bash
# Sourced by the scripts beside it: pod.env, checked, and gcloud for the TPU that it names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

die() { echo "error: $*" >&2; exit 2; }

unset PROJECT ZONE NAME ACCELERATOR RUNTIME SPOT QUEUED SLICES BUCKET  # The environment has no say.
# shellcheck source=pod.env
source tpu/pod.env

check() {  # VARIABLE PATTERN EXPECTED
  [ -n "${!1+set}" ] || die "tpu/pod.env: $1 is not set, $3 expected"
  [[ ${!1} =~ ^($2)$ ]] || die "tpu/pod.env: $1='${!1}' found, $3 expected"
}
check PROJECT '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' 'a project id such as my-project-123'
check ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-west4-a'
check NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' 'at most 40 lower-case letters, digits and hyphens, a letter first'
check ACCELERATOR '(v2|v3|v4|v5p|v5litepod|v6e)-[1-9][0-9]*' 'an accelerator type such as v5litepod-16'
check RUNTIME '[a-z0-9][a-z0-9.-]*' 'a runtime version such as v2-alpha-tpuv5-lite'
check SPOT 'yes|no' 'yes or no'
check QUEUED 'yes|no' 'yes or no'
check SLICES '[1-9][0-9]*' 'a number of slices'
check BUCKET '(gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])?' 'gs://NAME without a path, or nothing'
case $ACCELERATOR in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite;;
  v5p-*) runtime=v2-alpha-tpuv5;;
  v6e-*) runtime=v2-alpha-tpuv6e;;
  *) runtime=tpu-ubuntu2204-base;;
esac
case $RUNTIME in  # One of another generation boots and finds no TPU; one that is not listed may be newer.
  "$runtime") ;;
  v2-alpha-tpuv5-lite | v2-alpha-tpuv5 | v2-alpha-tpuv6e | tpu-ubuntu2204-base)
    die "tpu/pod.env: RUNTIME='$RUNTIME' found, $runtime expected for ACCELERATOR='$ACCELERATOR'";;
esac
[ "$SLICES" = 1 ] || [ "$QUEUED" = yes ] || die "tpu/pod.env: QUEUED='no' found, yes expected for SLICES='$SLICES'"
command -v gcloud > /dev/null || die 'gcloud is not on the PATH, the Google Cloud CLI expected:' \
  'https://cloud.google.com/sdk/docs/install'

tpu() {  # VERB ARGUMENTS...: of the VM, or of the queued resource that holds it.
  local kind=tpu-vm
  [ "$QUEUED" = no ] || kind=queued-resources
  gcloud compute tpus "$kind" "$@" --project="$PROJECT" --zone="$ZONE"
}

state() {  # READY or ACTIVE when it can be used, ABSENT when there is none.
  local field=state
  [ "$QUEUED" = no ] || field=state.state
  if tpu describe "$NAME" --format="value($field)" 2> "$scratch/problem"; then return; fi
  # Any other failure, such as a login that has expired, says nothing about the TPU.
  grep -q "NOT_FOUND.*/$NAME'" "$scratch/problem" || { cat "$scratch/problem" >&2; return 1; }
  echo ABSENT
}

usable() {  # COMMAND...: what to give again on a new TPU.
  local found
  found=$(state)
  case $found in
    READY | ACTIVE) ;;
    ABSENT) die "$NAME: no such TPU in $ZONE, create it: tpu/create.sh";;
    PREEMPTED | SUSPENDING | SUSPENDED | TERMINATED | FAILED)
      die "$NAME: $found, and its disk is lost; delete it, create it again and give the same command:
  tpu/delete.sh --yes && tpu/create.sh && tpu/setup.sh && $(printf '%q ' "$@")";;
    STOPPED) die "$NAME: $found, start it: gcloud compute tpus tpu-vm start $NAME --project=$PROJECT --zone=$ZONE";;
    *) die "$NAME: $found found, READY or ACTIVE expected; try again later, or wait: tpu/create.sh";;
  esac
}

worker() {  # WORKER SLICE COMMAND: by bash on one worker, or with 'all' on every one.
  if [ "$QUEUED" = yes ]; then tpu ssh "$NAME" --worker="$1" --node="$2" --command="$3"
  else tpu ssh "$NAME" --worker="$1" --command="$3"; fi
}

on_workers() {  # FUNCTION ARGUMENTS...: of these scripts, with what it may call, on every worker.
  worker all all "$(declare -f); $(printf '%q ' "$@")"
}

copy() {  # HEAD, to ~/vargrl.tar.gz of every worker.
  local changed
  git rev-parse --verify --quiet HEAD > /dev/null || die 'no commit found, a Git checkout of vargrl with one expected'
  changed=$(git diff --name-only HEAD -- . ':!tpu/pod.env' && git ls-files --others --exclude-standard '*.py')
  [ -z "$changed" ] || die "changes that are not committed, commit them first: ${changed//$'\n'/, }"
  git archive --format=tar.gz --output="$scratch/vargrl.tar.gz" HEAD
  set -- "$scratch/vargrl.tar.gz" "$NAME:" --worker=all
  [ "$QUEUED" = no ] || set -- "$@" --node=all
  tpu scp "$@"
}

# The two that follow run on the workers, where ~/vargrl holds tree/, env/, log and pid.

alive() {  # Not kill -0: after a reboot the number may be that of another program.
  [ -s ~/vargrl/pid ] && grep -qsa vargrl.main "/proc/$(cat ~/vargrl/pid)/cmdline"
}

unpack() {  # Files that the new commit no longer has go; runs/, weights/ and bucket/ stay.
  mkdir -p ~/vargrl/tree
  cd ~/vargrl/tree
  [ ! -e ../tree.tar.gz ] || tar tzf ../tree.tar.gz | grep -v '/$' | xargs -d '\n' rm -f
  mv ~/vargrl.tar.gz ../tree.tar.gz
  tar xzf ../tree.tar.gz
}
