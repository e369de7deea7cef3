"""Streams of a small data set, for the tests of this folder."""

from small_images import images_folder, open_images  # noqa: F401
