"""From a config to a trained run: assemble.py and policy.py make functions of it, run.py checks it,
loop.py tells the story of a step."""
