"""Rewards: one file each, under the contract `reward` of vargrl/contracts.py; types.Samples is what
they see, mix.py how several become one score, pool.py and worker.py how those of the host run."""
