"""A bitmap font of our own: the 26 capitals, five cells tall, one to five wide, a cell between
letters.
"""

import functools

import numpy as np

HEIGHT = 5
# Rows from the top, '#' is ink. Any two letters of one width differ in two cells or more.
ROWS = {
  'A': '.#. #.# ### #.# #.#',
  'B': '###. #..# ###. #..# ###.',
  'C': '.### #... #... #... .###',
  'D': '###. #..# #..# #..# ###.',
  'E': '### #.. ##. #.. ###',
  'F': '### #.. ##. #.. #..',
  'G': '.### #... #.## #..# .###',
  'H': '#.# #.# ### #.# #.#',
  'I': '# # # # #',
  'J': '..# ..# ..# #.# ###',
  'K': '#..# #.#. ##.. #.#. #..#',
  'L': '#.. #.. #.. #.. ###',
  'M': '#...# ##.## #.#.# #...# #...#',
  'N': '#..# ##.# #.## #..# #..#',
  'O': '.##. #..# #..# #..# .##.',
  'P': '### #.# ### #.. #..',
  'Q': '.##.. #..#. #..#. #..#. .##.#',
  'R': '###. #..# ###. #.#. #..#',
  'S': '.### #... .##. ...# ###.',
  'T': '### .#. .#. .#. .#.',
  'U': '#.# #.# #.# #.# ###',
  'V': '#...# #...# .#.#. .#.#. ..#..',
  'W': '#...# #...# #.#.# ##.## #...#',
  'X': '#.# #.# .#. #.# #.#',
  'Y': '#.# #.# .#. .#. .#.',
  'Z': '#### ..#. .#.. #... ####',
}


@functools.cache
def letter(name):
  """bool [5, width]."""
  return np.array([[cell == '#' for cell in row] for row in ROWS[name].split()])


@functools.lru_cache(4096)
def word(text):
  """bool [5, width]: the letters with an empty column between them; to be read only."""
  columns = [np.pad(letter(name), ((0, 0), (0, 1))) for name in text]
  return np.concatenate(columns, 1)[:, :-1]
