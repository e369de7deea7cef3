#!/usr/bin/env bash
# tpu/setup.sh: Python, vargrl and JAX for TPUs on every worker; once, and again when setup.py has changed.
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
[ $# = 0 ] || die "argument '$1' found, none expected"

# shellcheck disable=SC2329  # On the workers.
install() {  # BUCKET
  set -euo pipefail
  ! alive || { echo "$(hostname): a run is alive, stop it first: tpu/stop.sh" >&2; exit 1; }
  unpack
  cd ~/vargrl
  rm -f env/setup.py  # Until all is installed, run.sh asks for this script again.
  # The images have Python 3.10, vargrl needs 3.11; uv brings one that nothing else on the VM depends on.
  [ -x ~/.local/bin/uv ] || python3 -m pip install --quiet --user uv
  [ -x env/bin/pip ] || { rm -rf env; ~/.local/bin/uv venv --quiet --seed --python 3.12 env; }
  env/bin/pip install --quiet --upgrade -e './tree[tpu]'
  if [ -n "$1" ] && ! command -v gcsfuse > /dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt
    curl -fsS "$from/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" \
      | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A new VM upgrades itself for some minutes and holds the lock of apt.
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse > /dev/null
  fi
  cp tree/setup.py env/setup.py
  echo "$(hostname): set up"
}

usable tpu/setup.sh
copy
on_workers install "$BUCKET"
echo "$NAME: set up. Next: tpu/run.sh train --config experiments/X.py --workdir ${BUCKET:+bucket/}DIR"
