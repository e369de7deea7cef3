"""What a name in a config must name: the contract of each kind of module, written down once."""

import fnmatch

# Config keys of earlier versions: the pattern of their path (a part `*` is any name) and what they
# are called now. Of several new names, the one that the section expects.
RENAMED = {
  'data.look': 'vision',
  'data.look.least': 'min_pixels',
  'data.look.most': 'max_pixels',
  'data.vision.least': 'min_pixels',
  'data.vision.most': 'max_pixels',
  'data.wanted': 'loss_on',
  'data.drawn': 'image_tokens',
  'data.pictures': 'max_images',
  'data.patches': 'max_patches',
  'data.memory': 'max_context',
  'data.records': ('examples_per_row', 'max_records'),
  'data.sources.*.records': 'max_records',
  'data.draw': 'prefill_image',
  'data.answer': 'max_answer',
  'evals.*.look': 'vision',
  'evals.*.patches': 'max_patches',
  'evals.*.records': 'max_records',
  'replicated_at_most': 'max_replicated_share',
  'tokenizer.drop': 'scale_dropout',
  'tokenizer.phis': 'n_shared_convs',
  'tokenizer.spread': 'codebook_std',
  'evals.*.every': 'every_steps',
  'evals.*.each': ('per_class', 'per_prompt'),
  'evals.*.samples_each': 'per_class',
}


def renamed(section: str, key: str, expected=()) -> str | None:
  """The present name of a config key of an earlier version; None if it never had another name.

  section: the dotted path of the section that the key was found in, such as 'data' or
  'evals.generation'. expected: the keys that the section may have; where a key has become one of
  several, the one among these is returned.
  """
  for old, names in RENAMED.items():
    if fnmatch.fnmatchcase(f'.{section}.{key}', f'*.{old}'):
      names = (names,) if isinstance(names, str) else names
      known = [name for name in names if name in expected] or [n for n in names if not expected]
      if known:
        return known[0]
  return None


def check_keys(section: str, found, expected):
  """Raises ValueError, which names the section, unless the keys found in it are those expected."""
  if error := key_error(section, found, expected):
    raise ValueError(f'{section}: {error}')


def key_error(section: str, found, expected) -> str:
  """What is wrong with the keys found in a config section, as the end of a sentence; '' if nothing.

  A key of an earlier version is named together with its present name.
  """
  found, expected = set(found), set(expected)
  names = {key: renamed(section, key, expected) for key in sorted(found - expected)}
  if any(names.values()):
    return '; '.join(f'key {k!r} found, it is called {v!r} now' for k, v in names.items() if v)
  return '' if found == expected else f'keys {sorted(found)} found, {sorted(expected)} expected'
