"""A module that cannot be imported."""

raise OSError('weights not found')
