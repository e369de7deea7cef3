"""Trains all runs of an experiment that are not finished."""

import time

from vargrl.io import paths
from vargrl.parallel import multihost, preemption
from vargrl.reporting import wandb_run
from vargrl.training import chain


def main(flags):
  """Trains; then prints the metrics of `summary` before and after, the time, and the report's
  path. Raises ValueError for what no run can start from."""
  root, began = paths.path(flags.workdir), time.time()
  wandb_run.check_installed(flags.wandb)
  try:
    report = chain.train(flags.config, root, wandb=flags.wandb)
  except preemption.Stop as stop:
    if multihost.is_first_host():
      print(f'{stop}; the same command goes on')
    return
  if not multihost.is_first_host():
    return
  for row in chain.summary(root, flags.config):
    print(f'{row["name"]:20} before {row["before"]:.4g}   after {row["after"]:.4g}')
  print(f'time {time.time() - began:.0f} s\nreport {report.resolve()}')
