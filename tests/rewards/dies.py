"""A module that kills who imports it."""

import os

os._exit(7)
