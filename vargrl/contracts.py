"""What a name in a config must name: the contract of each kind of module, written down once."""
