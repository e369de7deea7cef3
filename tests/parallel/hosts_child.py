"""One process of several on CPUs: python hosts_child.py ARGUMENTS of vargrl.main.

JAX's keys of compiled programs differ between the processes of a CPU run, and only the first one
writes: the others would compile everything anew in every run. With equal keys they read what the
first has written."""

import sys

from jax._src import cache_key

from vargrl import main

cache_key._hash_accelerator_config = lambda hash_obj, accelerators: hash_obj.update(b'cpu')

if __name__ == '__main__':
  sys.exit(main.main(['vargrl', *sys.argv[1:]]))
