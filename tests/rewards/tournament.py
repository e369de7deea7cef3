"""A host reward that compares the rows of a prompt: the share of the others that each row beats."""

HOST = True
GROUPS = True


def reward(samples, *, log, refuse):
  """Brighter pictures win. Notes the rows of each call, and raises for the prompt `refuse`."""
  with open(log, 'a') as f:
    f.write(f'{len(samples.record)}\n')
  brightness = [float(image.mean()) for image in samples.image_Byxc]
  scores = []
  for mine, group in zip(brightness, samples.group, strict=True):
    if group == refuse:
      raise RuntimeError(f'prompt {group} is not to my taste')
    others = [x for x, other in zip(brightness, samples.group) if other == group]
    scores.append(sum(mine > x for x in others) / (len(others) - 1))
  return scores
