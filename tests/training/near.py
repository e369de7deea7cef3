"""A reward of text that random weights do not all get alike."""

HOST = True


def reward(samples):
  """r_B: how near the length of what a row says is to that of its record's answer."""
  rows = zip(samples.texts['text'], samples.record, strict=True)
  return [-abs(len(said) - len(record['answer'])) for said, record in rows]
