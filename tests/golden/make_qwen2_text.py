"""Writes tests/golden/qwen2_text.json with transformers' tokenizer and chat templates:

python tests/golden/make_qwen2_text.py     # needs transformers 5
"""

import json
import pathlib
import sys
import tempfile

import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
import small_qwen  # noqa: E402


def main():
  out = {'source': {'transformers': transformers.__version__}, 'dialogues': {}}
  for name, template in small_qwen.TEMPLATES.items():
    with tempfile.TemporaryDirectory() as folder:
      small_qwen.write(pathlib.Path(folder), template)
      tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
      say = lambda dialogue, answer: tokenizer.apply_chat_template(
        dialogue, add_generation_prompt=answer, tokenize=True, return_dict=False
      )
      out['dialogues'][name] = [
        [say(dialogue, answer) for answer in (False, True)] for dialogue in small_qwen.DIALOGUES
      ]
      if 'texts' not in out:
        out['texts'] = [tokenizer(text)['input_ids'] for text in small_qwen.TEXTS]
      print(type(tokenizer).__name__, tokenizer.decode(out['dialogues'][name][1][0]))
  (HERE / 'qwen2_text.json').write_text(json.dumps(out, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  main()
